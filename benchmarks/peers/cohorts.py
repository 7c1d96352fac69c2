"""CPU seconds of clients in cohorts against the plain loop and against one client after another.

    python -m benchmarks.peers.cohorts [--clients 8 32 128] [--adapters 45KB] [--turns 3]

All variants take turns in one process, on one thread. The ratios are those of the CPU seconds of
the same turn, so that they mean something on a machine that others use as well. A variant whose
final adapter differs from the plain loop's by more than 1e-5 is void.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.loop import PLAIN, TOLERANCE
from benchmarks.peers import ours, plain
from benchmarks.peers.workload import SIZES, Clock, Work, make

CLIENTS = {"45KB": (8, 32, 128), "11.5MB": (8, 16)}
COHORTS = (1, 4, 8, 16, 32)


def turn(
    work: Work, variants: dict[str, int], *, clients: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return CPU seconds of a later round, and how far the final adapter is off, of each variant.

    Args:
        work: The workload.
        variants: Size of the cohorts of each variant; 0 for the plain loop.
        clients: Number of clients.
        rounds: Number of rounds; the first is left out.
    """
    found: dict[str, tuple[float, float]] = {}
    reference: dict[str, Tensor] = {}
    for name, cohort in variants.items():
        clock = Clock()
        if cohort:
            final, _ = ours.train(work, clients=clients, rounds=rounds, clock=clock, cohort=cohort)
        else:
            final = reference = plain.train(work, clients=clients, rounds=rounds, clock=clock)
        off = max(float((final[key] - value).abs().max()) for key, value in reference.items())
        found[name] = (median(clock.cpus[1:]), off)
    return found


def row(name: str, turns: list[dict[str, tuple[float, float]]], clients: int) -> str:
    """Return a line of the table."""
    off = max(each[name][1] for each in turns)
    if off > TOLERANCE:
        return f"| {name} | void: another adapter | | |"
    spent = [1e3 * each[name][0] / clients for each in turns]
    ratios = [each[name][0] / each[PLAIN][0] for each in turns]
    ahead = harness.spread(spent, "{:.1f}")
    return f"| {name} | {ahead} | {harness.spread(ratios, '{:.2f}')} | {off:.0e} |"


def main() -> None:
    """Measure, and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", help=f"by default {CLIENTS}")
    parser.add_argument("--adapters", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--cohorts", type=int, nargs="+", default=list(COHORTS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    folder = harness.REPOSITORY / "benchmarks/results/loop"
    parser.add_argument("--folder", type=Path, default=folder, help="of the workload")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for adapter in args.adapters:
        work = make(args.folder / adapter, SIZES[adapter])
        for clients in args.clients or CLIENTS[adapter]:
            sizes = [size for size in args.cohorts if size <= clients]
            variants = {PLAIN: 0, **{f"cohort: {size}": size for size in sizes}}
            turns = [
                turn(work, variants, clients=clients, rounds=args.rounds) for _ in range(args.turns)
            ]
            print(f"\n**{clients} clients, an adapter of {adapter}** ({args.turns} turns)\n")
            print("| | CPU, ms a client | x plain | adapter off by |\n|---|---:|---:|---:|")
            print(*(row(name, turns, clients) for name in variants), sep="\n", flush=True)


if __name__ == "__main__":
    main()
