"""The workload with Lightning as many write it: a new `Trainer` for each client in each round.

A `Trainer` that is used again does nothing once its epochs are reached, so a new one is the safe
way. All that it can leave out is left out: log, checkpoint, progress bar, summary.
"""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.model import PromptLM
from benchmarks.peers.workload import Clock, Work, arguments, load


class Client(L.LightningModule):
    """The model of the workload as a LightningModule."""

    def __init__(self, model: PromptLM) -> None:
        """Wrap the model."""
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.model.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser of the adapter."""
        adapter = self.model.adapter().values()
        return torch.optim.AdamW(adapter, lr=self.model.sizes.learning_rate)


def train(work: Work, *, clients: int, rounds: int, clock: Clock) -> dict[str, Tensor]:
    """Train and return the averaged adapter."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    model, sizes = PromptLM(work), work.sizes
    module = Client(model.train())
    common = {k: p.detach().clone() for k, p in model.adapter().items()}
    for number in range(rounds):
        total = {k: torch.zeros_like(p) for k, p in common.items()}
        for client in range(clients):
            model.load_adapter(common)
            trainer = L.Trainer(
                max_epochs=1,
                accelerator="cpu",
                devices=1,
                gradient_clip_val=sizes.clip,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            samples = TensorDataset(*work.passes(client, number))
            trainer.fit(module, DataLoader(samples, batch_size=sizes.batch))
            for name, parameter in model.adapter().items():
                total[name] += parameter.detach()
        common = {k: t / clients for k, t in total.items()}
        clock.round_ended()
    return common


if __name__ == "__main__":
    import peft  # noqa: F401 - counted with the imports, not with the first round
    import transformers  # noqa: F401

    clock, args = Clock(), arguments()
    final = train(load(args.work), clients=args.clients, rounds=args.rounds, clock=clock)
    clock.finish(final, args.out, wire=0)
