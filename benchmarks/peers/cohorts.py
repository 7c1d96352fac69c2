"""Time of clients in cohorts against the plain loop and against one client after another.

    python -m benchmarks.peers.cohorts [--clients 8 32 128] [--adapters 45KB] [--turns 3]
    python -m benchmarks.peers.cohorts --gpu [--clients 64] [--cohorts 1 4 16 64]

All variants take turns in one process, on one thread. The ratios are those of the same turn, so
that they mean something on a machine that others use as well. A variant whose final adapter differs
from the plain loop's by more than 1e-5 is void. The time is that of the processor. With ``--gpu``
the backbone has 0.47 billion parameters, in float32 on CUDA; the time is that on the wall, and the
memory is the most that tensors took on the GPU.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.loop import PLAIN, TOLERANCE
from benchmarks.peers import ours, plain
from benchmarks.peers.workload import ADAPTERS, LARGE, SIZES, Clock, Work, make

CLIENTS = {"45KB": (8, 32, 128), "11.5MB": (8, 16), "0.5B": (64,)}
COHORTS, COHORTS_GPU = (1, 4, 8, 16, 32), (1, 4, 16, 64)


@dataclass(frozen=True)
class Measured:
    """What a variant took in a turn.

    Attributes:
        seconds: Of a later round: of the processor, or on the wall with a GPU.
        off: Largest difference of its final adapter from the plain loop's.
        memory: Most bytes that its tensors took on the GPU; 0 without one.
    """

    seconds: float
    off: float
    memory: int


def turn(
    work: Work,
    variants: dict[str, int],
    device: Literal["cpu", "cuda"],
    *,
    clients: int,
    rounds: int,
) -> dict[str, Measured]:
    """Run each variant once.

    Args:
        work: The workload.
        variants: Size of the cohorts of each variant; 0 for the plain loop, which comes first.
        clients: Number of clients.
        rounds: Number of rounds; the first is left out.
        device: Where the models are.
    """
    found: dict[str, Measured] = {}
    reference: dict[str, Tensor] = {}
    for name, cohort in variants.items():
        gpu = device == "cuda"
        if gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        clock = Clock()
        if cohort:
            final, _ = ours.train(
                work, clients=clients, rounds=rounds, clock=clock, cohort=cohort, device=device
            )
        else:
            final = plain.train(work, clients=clients, rounds=rounds, clock=clock, device=device)
        final = {key: value.cpu() for key, value in final.items()}
        reference = reference or final
        off = max(float((final[key] - value).abs().max()) for key, value in reference.items())
        later = (clock.rounds if gpu else clock.cpus)[1:]
        memory = torch.cuda.max_memory_allocated() if gpu else 0
        found[name] = Measured(median(later), off, memory)
    return found


def row(name: str, turns: list[dict[str, Measured]], clients: int, *, gpu: bool) -> str:
    """Return a line of the table."""
    own = [each[name] for each in turns]
    off = max(each.off for each in own)
    if off > TOLERANCE:
        return f"| {name} | void: another adapter | |" + " |" * (1 + gpu)
    spent = [1e3 * each.seconds / clients for each in own]
    ratios = [each.seconds / t[PLAIN].seconds for each, t in zip(own, turns, strict=True)]
    # The smallest: what an earlier variant has left on the GPU is not this one's.
    memory = f" {min(each.memory for each in own) / 2**30:.1f} |" if gpu else ""
    ahead = harness.spread(spent, "{:.1f}")
    return f"| {name} | {ahead} | {harness.spread(ratios, '{:.2f}')} |{memory} {off:.0e} |"


def main() -> None:
    """Measure, and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="a backbone of 0.5B, on CUDA")
    parser.add_argument("--clients", type=int, nargs="+", help=f"by default {CLIENTS}")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--cohorts", type=int, nargs="+", help=f"by default {COHORTS}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    folder = harness.REPOSITORY / "benchmarks/results/loop"
    parser.add_argument("--folder", type=Path, default=folder, help="of the workload")
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no CUDA device")
    torch.set_num_threads(1)
    device: Literal["cpu", "cuda"] = "cuda" if args.gpu else "cpu"
    works = {"0.5B": LARGE} if args.gpu else {name: SIZES[name] for name in args.adapters}
    heads = ["", "ms a client" if args.gpu else "CPU, ms a client", "x plain"]
    heads += [*["memory, GiB"] * args.gpu, "adapter off by"]
    for name, fixed in works.items():
        work = make(args.folder / name, fixed)
        for clients in args.clients or CLIENTS[name]:
            asked = args.cohorts or (COHORTS_GPU if args.gpu else COHORTS)
            sizes = [size for size in asked if size <= clients]
            variants = {PLAIN: 0, **{f"cohort: {size}": size for size in sizes}}
            turns = [
                turn(work, variants, clients=clients, rounds=args.rounds, device=device)
                for _ in range(args.turns)
            ]
            said = "a backbone of 0.5B" if args.gpu else f"an adapter of {name}"
            print(f"\n**{clients} clients, {said}** ({args.turns} turns)\n")
            print(f"| {' | '.join(heads)} |\n|---|" + "---:|" * (len(heads) - 1))
            lines = [row(variant, turns, clients, gpu=args.gpu) for variant in variants]
            print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
