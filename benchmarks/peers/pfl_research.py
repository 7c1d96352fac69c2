"""The workload in pfl-research 0.6: `FederatedAveraging` over a `SimulatedBackend`.

As its documentation and its own benchmarks write it: a model with `loss` and `metrics`, users'
tensors in memory, one process. Its single-process simulation carries no bytes over a border.
"""

from __future__ import annotations

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from benchmarks.peers.model import PromptLM
from benchmarks.peers.workload import Clock, Work, arguments, load


class Model(PromptLM):
    """The model with the metric that pfl asks for; it costs nothing."""

    def metrics(self, x: Tensor, tokens: Tensor) -> dict[str, Weighted]:
        """Return a count, without a pass."""
        return {"samples": Weighted(len(x), 1)}


class Rounds(TrainingProcessCallback):
    """Counts rounds and notes the end of each."""

    def __init__(self, clock: Clock) -> None:
        """Start before the first round."""
        self.clock, self.number = clock, 0

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Go on."""
        self.clock.round_ended()
        self.number += 1
        return False, Metrics()


def train(work: Work, *, clients: int, rounds: int, clock: Clock) -> dict[str, Tensor]:
    """Train and return the averaged adapter."""
    sizes, progress = work.sizes, Rounds(clock)
    net = Model(work)
    net.train()
    adapter = list(net.adapter().values())

    def local_optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:  # noqa: ANN401
        return torch.optim.AdamW(adapter, lr=lr)  # it offers all parameters, frozen ones too

    def user(client: int) -> Dataset:
        return Dataset(raw_data=list(work.passes(client, progress.number)), user_id=str(client))

    users = get_user_sampler("minimize_reuse", list(range(clients)))
    data = FederatedDataset(user, users)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByUser()]),
        PyTorchModel(
            model=net,
            local_optimizer_create=local_optimizer,
            central_optimizer=torch.optim.SGD(adapter, lr=1.0),
        ),
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=sizes.learning_rate,
            local_batch_size=sizes.batch,
            local_max_grad_norm=sizes.clip,
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[progress],
        send_metrics_to_platform=False,
    )
    return {k: p.detach() for k, p in net.adapter().items()}


if __name__ == "__main__":
    import peft  # noqa: F401 - counted with the imports, not with the first round
    import transformers  # noqa: F401

    clock, args = Clock(), arguments()
    final = train(load(args.work), clients=args.clients, rounds=args.rounds, clock=clock)
    clock.finish(final, args.out, wire=0)
