"""Where a client's time goes: the stages of a round, in processor time.

    python -m benchmarks.profile_round [--clients 16] [--rounds 4] [--work loop mlecs]

``loop`` and ``loop-large`` are the work of `benchmarks.loop` (FedAvg of a LoRA adapter of 45 kB and
of 11.5 MB, four steps a client), under the plain loop and under `FederatedTrainer`; ``mlecs`` is a
round of ML-ECS as `benchmarks.scaling` has it, ``mlecs-large`` the same over the larger backbone.
The first round is left out. A title ends with how often the passes are in the whole: the forward
passes, objectives included, and the backward passes.

Not cProfile: it doubles the time of such a round, all of it on the side of Python. Here only the
named stages are wrapped, some thirty calls a client. *own*: without the stages within; *whole*:
with them. ``--dump FILE`` writes a profile of cProfile all the same, for `pstats`.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from benchmarks import harness, scaling
from benchmarks.peers import ours, plain, workload
from benchmarks.peers.model import PromptLM
from mlecs_lightning.aggregation.adapters import AdapterAggregator
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.federated.exchange.device import Device
from mlecs_lightning.federated.exchange.server import Exchange
from mlecs_lightning.federated.round_loop import RoundLoop
from mlecs_lightning.modules.base import MultimodalLM
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.nn.tower import Tower
from mlecs_lightning.rounds.learner import Learner
from mlecs_lightning.wire.channel import Channel

STAGES: dict[str, tuple[Any, str]] = {
    "model: forward (plain)": (PromptLM, "loss"),
    "model: extractors": (MultimodalLM, "features"),
    "model: connector": (Connector, "forward"),
    "model: backbone": (Backbone, "forward"),
    "model: tower, the rest": (Tower, "forward"),
    "objective, the rest": (MultimodalLM, "forward"),
    "backward": (torch.Tensor, "backward"),
    "clip the gradient": (torch.nn.utils, "clip_grad_norm_"),
    "AdamW step": (torch.optim.AdamW, "step"),
    "zero the gradient": (torch.optim.Optimizer, "zero_grad"),
    "cut out a batch": (SampleTable, "__getitems__"),
    "move a batch": (Fabric, "to_device"),
    "steps, the rest": (Learner, "fit_in_turns"),
    "check the losses": (Learner, "_summary"),
    "seed the generators": (RoundLoop, "_seed"),
    "load a client": (FederationModels, "edge"),
    "keep a client": (FederationModels, "keep"),
    "serve a client, the rest": (Device, "work"),
    "accept an update, the rest": (Exchange, "accept"),
    "serialise": (Channel, "send"),
    "read and check": (Channel, "receive"),
    "aggregate": (AdapterAggregator, "add"),
    "a round, the rest": (RoundLoop, "round"),
}
PASSES = [name for name in STAGES if name.startswith(("model", "objective", "backward"))]


class Stage:
    """Calls and seconds of one stage."""

    calls, own, whole = 0, 0.0, 0.0


class Stages:
    """Times the stages of this thread, each without those within it."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.times: dict[str, Stage] = {}
        self._within: list[float] = []

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever it is
            self._within.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                inner = self._within.pop()
                if self._within:
                    self._within[-1] += took
                stage = self.times.setdefault(name, Stage())
                stage.calls += 1
                stage.own += took - inner
                stage.whole += took

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time all stages in this block."""
        before = {name: getattr(*place) for name, place in STAGES.items()}
        for name, (owner, attribute) in STAGES.items():
            setattr(owner, attribute, self.wrapped(name, before[name]))
        try:
            yield
        finally:
            for name, (owner, attribute) in STAGES.items():
                setattr(owner, attribute, before[name])


class Watch(workload.Clock):
    """Forgets the first round, and profiles the others if asked to."""

    def __init__(self, stages: Stages, profile: cProfile.Profile | None) -> None:
        """Watch some stages."""
        super().__init__()
        self._stages, self._profile = stages, profile

    def round_ended(self) -> None:
        """See `Clock`."""
        super().round_ended()
        if len(self.rounds) == 1:
            self._stages.times.clear()
            if self._profile:
                self._profile.enable()


def report(title: str, run: Callable[..., Any], *, clients: int, dump: Path | None) -> None:
    """Run, and print a table of the stages."""
    stages, profile = Stages(), cProfile.Profile(time.process_time) if dump else None
    clock = Watch(stages, profile)
    with stages.watching():
        run(clock=clock)
    if profile and dump:
        profile.disable()
        profile.dump_stats(dump)
    units = clients * (len(clock.rounds) - 1)
    total = sum(clock.cpus[1:])
    passes = sum(stages.times[name].own for name in PASSES if name in stages.times)
    said = f"{1e3 * total / units:.1f} ms of processor time a client and round"
    print(f"**{title}**: {said}, {total / passes:.2f} x the passes\n")
    print("| stage | calls | own, ms | whole, ms | own, share |")
    print("|---|---:|---:|---:|---:|")
    for name, stage in sorted(stages.times.items(), key=lambda item: -item[1].own):
        own, whole = (1e3 * seconds / units for seconds in (stage.own, stage.whole))
        share = 100 * stage.own / total
        print(f"| {name} | {stage.calls / units:.1f} | {own:.2f} | {whole:.2f} | {share:.1f} % |")
    rest = total - sum(stage.own for stage in stages.times.values())
    print(f"| all else | | {1e3 * rest / units:.2f} | | {100 * rest / total:.1f} % |\n", flush=True)


def main() -> None:
    """Profile what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    works = {"loop": "45KB", "loop-large": "11.5MB", "mlecs": "45KB", "mlecs-large": "11.5MB"}
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", nargs="+", choices=list(works), default=list(works))
    parser.add_argument(
        "--folder", type=Path, default=harness.REPOSITORY / "benchmarks/results/loop"
    )
    parser.add_argument("--dump", type=Path, help="cProfile's file, of the last work")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = {"clients": args.clients, "rounds": args.rounds}
    for name in args.work:
        folder = args.folder / works[name]
        work = workload.make(folder, workload.SIZES[works[name]])
        said = f"an adapter of {works[name]}"
        runs = {
            f"plain PyTorch loop, {said}": functools.partial(plain.train, work, **size),
            f"FederatedTrainer, FedAvg, {said}": functools.partial(ours.train, work, **size),
        }
        if name.startswith("mlecs"):
            of = f"FederatedTrainer, ML-ECS, the backbone of {works[name]}"
            runs = {of: functools.partial(scaling.train, size, folder)}
        for title, run in runs.items():
            report(title, run, clients=args.clients, dump=args.dump)


if __name__ == "__main__":
    main()
