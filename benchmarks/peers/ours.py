"""The workload under our `FederatedTrainer`.

All that a run does between its start and the end of its last round is done: messages are
serialised, checked and counted, clients' states kept. Two settings are those of the other peers:
only the adapter trains, and a client's optimiser does not outlive its round.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.peers.workload import TARGETS, Clock, Work, arguments, load, name_of
from mlecs_lightning.algorithms.base import Steps
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients.settings import ClientSettings, Federation
from mlecs_lightning.data.base import FederatedDataModule, Pools
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.federated.trainer import FederatedTrainer
from mlecs_lightning.modules import EdgeModule, MultimodalLM
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)
from mlecs_lightning.types import ModalitySpec
from mlecs_lightning.wire import Message


class WorkData(FederatedDataModule):
    """The samples of the workload: a vector, an instruction and an answer."""

    classes = ()

    def __init__(self, work: Work, clients: int) -> None:
        """Take the samples of the first clients."""
        super().__init__(batch_size=work.sizes.batch, val_fraction=0.0)
        self.modalities = {"v": ModalitySpec("vector", (work.sizes.features,))}
        self._work, self._clients = work, clients

    def load_pools(self) -> Pools:
        """Return one domain for each client; a few samples stand in for what is not used."""
        clients = range(self._clients)
        private = _table(
            self._work, [(c, i) for c in clients for i in range(self._work.x.shape[1])]
        )
        few = _table(self._work, [(0, i) for i in range(self._work.sizes.batch)])
        return Pools(few, private, few)

    def read_label(self, text: str) -> int | None:
        """Return no class: there are none."""
        return None

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return nothing: the backbone is made."""
        return []


def _table(work: Work, rows: list[tuple[int, int]]) -> SampleTable:
    head = work.sizes.head
    texts = [[f"w{t}" for t in work.tokens[c, i].tolist()] for c, i in rows]
    clients = tuple(name_of(c) for c, _ in rows)
    names = tuple(f"{name_of(c)}/{i:02d}" for c, i in rows)
    return SampleTable(
        ids=names,
        modalities=("v",),
        inputs={"v": torch.stack([work.x[c, i] for c, i in rows])},
        present=torch.ones(len(rows), 1, dtype=torch.bool),
        instructions=tuple(" ".join(words[:head]) for words in texts),
        targets=tuple(" ".join(words[head:-1]) for words in texts),
        labels=torch.zeros(len(rows), dtype=torch.int64),
        domains=clients,
        groups=names,
    )


class AdapterFedAvg(FedAvg):
    """FedAvg in which only the adapter trains, by an optimiser that is new in every round."""

    def __init__(self, work: Work) -> None:
        """Take the steps and the initial weights of the workload."""
        super().__init__(steps=Steps(warmup=0, public=0, private=work.sizes.steps, server=0))
        self._work = work

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Write the weights of the workload, and freeze all but the adapters."""
        super().prepare(server, clients)
        for module in {id(m): m for m in (server.module, *clients.values())}.values():
            _freeze(module)
            module.load_adapter_state(self._work.adapter)
        for module in clients.values():
            _write_prompt(module, self._work.prompt)

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Forget the optimiser's state when the client has trained."""
        update = super().client_update(edge, loaders, broadcast, ctx)
        edge.optimizer.optimizer.state.clear()
        return update


def _freeze(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _write_prompt(module: MultimodalLM, prompt: Mapping[str, Tensor]) -> None:
    """Write the weights of `prompt_network`, whose layers are those of extractor and connector."""
    layers = module.extractors["v"].layers
    connector = module.tower().connector
    ours = [layers[0], layers[2], connector.projections["v"], *connector.fuse]
    for number, part in zip("023457", [*ours, connector.to_prompt[-1]], strict=True):
        part.load_state_dict({k: prompt[f"{number}.{k}"] for k in ("weight", "bias")})


class Ended(Exception):
    """What would follow is the test of every client, which no other peer does."""


class Watch(FederatedCallback):
    """Notes the end of every round, and leaves after the last one."""

    def __init__(self, clock: Clock, rounds: int) -> None:
        """Count down from a number of rounds."""
        self._clock, self._left = clock, rounds
        self.metrics: Mapping[str, float] = {}

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """See `FederatedCallback`."""
        self._clock.round_ended()
        self.metrics = metrics
        self._left -= 1
        if not self._left:
            raise Ended


class Captured(AdapterFedAvg):
    """Keeps hold of the server, to read the final adapter from it."""

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """See `AdapterFedAvg`."""
        super().prepare(server, clients)
        self.server = server


def settings(work: Work, clients: int) -> Federation:
    """Return the federation: one architecture, one modality."""
    sizes = work.sizes
    model = ModelSettings(
        backbone=BackboneSettings(work.backbone),
        lora=LoraSettings(sizes.rank, 2 * sizes.rank, 0.0, TARGETS),
        connector=ConnectorSettings(sizes.latent, sizes.prompt, 0.0),
        optimizer={"class_path": "AdamW", "init_args": {"lr": sizes.learning_rate}},
    )
    named = {n: ClientSettings(["v"], domains=[n]) for n in map(name_of, range(clients))}
    return Federation(model, model, named, sizes.seed)


def train(
    work: Work,
    *,
    clients: int,
    rounds: int,
    clock: Clock,
    store: Literal["memory", "disk"] = "memory",
    checkpoint: bool = False,
    cohort: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> tuple[dict[str, Tensor], int]:
    """Train and return the averaged adapter, and the bytes of a round."""
    algorithm, watch = Captured(work), Watch(clock, rounds)
    with tempfile.TemporaryDirectory() as root:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            accelerator=device,
            devices="auto" if device == "cpu" else 1,
            gradient_clip_val=work.sizes.clip,
            check_val_every_n_rounds=0,
            store=store,
            cohort=cohort,
            save_top_k=1,
            enable_checkpointing=checkpoint,
            enable_progress_bar=False,
            logger=False,
            callbacks=[watch],
            default_root_dir=root,
        )
        with contextlib.suppress(Ended):
            trainer.fit(algorithm, WorkData(work, clients), settings(work, clients))
    both = ("communication/uplink_bytes", "communication/downlink_bytes")
    wire = sum(watch.metrics[way] for way in both) / rounds
    return algorithm.server.module.adapter_state(), round(wire)


if __name__ == "__main__":
    import peft  # noqa: F401 - counted with the imports, not with the first round
    import transformers  # noqa: F401

    clock, args = Clock(), arguments("disk", "checkpoint", "cohort")
    final, wire = train(
        load(args.work),
        clients=args.clients,
        rounds=args.rounds,
        clock=clock,
        store="disk" if args.disk else "memory",
        checkpoint=args.checkpoint,
        cohort=16 if args.cohort else 1,
    )
    if not int(os.environ.get("RANK", "0")):
        clock.finish(final, args.out, wire=wire)
