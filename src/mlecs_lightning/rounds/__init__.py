"""A round: its context and participants, the steps of an algorithm, and client failures."""

from mlecs_lightning.rounds.algorithm import Algorithm, ClientUpdate, Loaders
from mlecs_lightning.rounds.bounds import UpdateLimits
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import EvaluationError, FailureTrace
from mlecs_lightning.rounds.learner import (
    EdgeLearner,
    Learner,
    NonFiniteError,
    ServerLearner,
    TrainingPass,
)
from mlecs_lightning.rounds.participation import Participation
from mlecs_lightning.rounds.privacy import Privacy
from mlecs_lightning.rounds.signals import Interrupted

__all__ = [
    "Algorithm",
    "ClientUpdate",
    "EdgeLearner",
    "EvaluationError",
    "FailureTrace",
    "Interrupted",
    "Learner",
    "Loaders",
    "NonFiniteError",
    "Participation",
    "Privacy",
    "RoundContext",
    "ServerLearner",
    "TrainingPass",
    "UpdateLimits",
]
