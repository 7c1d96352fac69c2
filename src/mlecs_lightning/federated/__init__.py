"""The federated loop on Fabric: the trainer, its rounds, its run folder."""

from mlecs_lightning.federated.round_loop import ClientsFailedError
from mlecs_lightning.federated.trained_run import TrainedRun, load_run
from mlecs_lightning.federated.trainer import FederatedTrainer

__all__ = ["ClientsFailedError", "FederatedTrainer", "TrainedRun", "load_run"]
