"""The federated engine: messages, channel, aggregation, client states, and the loop on Fabric."""

from mlecs_lightning.federated.aggregator import AdapterAggregator, Aggregate, Aggregation
from mlecs_lightning.federated.algorithm import Algorithm, ClientUpdate, Loaders
from mlecs_lightning.federated.channel import Channel
from mlecs_lightning.federated.checkpoint import CheckpointError
from mlecs_lightning.federated.clients import ClientSettings, DrawnClients, FederationSettings
from mlecs_lightning.federated.codec import DWC, Codec
from mlecs_lightning.federated.context import RoundContext
from mlecs_lightning.federated.encoding import ChannelError
from mlecs_lightning.federated.faults import EvaluationError, FaultTrace
from mlecs_lightning.federated.federation import Federation
from mlecs_lightning.federated.learner import (
    EdgeLearner,
    Learner,
    NonFiniteError,
    ServerLearner,
    TrainingPass,
)
from mlecs_lightning.federated.loop import ClientsFailedError
from mlecs_lightning.federated.messages import Message, ScalarField, Schema, TensorField
from mlecs_lightning.federated.signals import Interrupted
from mlecs_lightning.federated.trainer import FederatedTrainer

__all__ = [
    "DWC",
    "AdapterAggregator",
    "Aggregate",
    "Aggregation",
    "Algorithm",
    "Channel",
    "ChannelError",
    "CheckpointError",
    "ClientSettings",
    "ClientUpdate",
    "ClientsFailedError",
    "Codec",
    "DrawnClients",
    "EdgeLearner",
    "EvaluationError",
    "FaultTrace",
    "FederatedTrainer",
    "Federation",
    "FederationSettings",
    "Interrupted",
    "Learner",
    "Loaders",
    "Message",
    "NonFiniteError",
    "RoundContext",
    "ScalarField",
    "Schema",
    "ServerLearner",
    "TensorField",
    "TrainingPass",
]
