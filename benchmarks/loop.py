"""What a federated loop costs beside the training itself: ours, and those one would pick instead.

    make bench-loop
    python -m benchmarks.loop [--clients 8 32] [--adapters 45KB 11.5MB] [--repeats 5]

Everybody does the work of `benchmarks.peers.workload` (a tiny GPT-2 with LoRA, four AdamW steps a
client), each in a process of its own, on one thread a process, in turns; the order of the turns
rotates. Where a round is long there are fewer turns (`TURNS`). A row whose final adapter differs
from the plain loop's by more than 1e-5 is void. One JSON line is kept for each run, so that a
matrix that was stopped goes on where it was.

*import*: start of the process to the end of its imports. *first round*: from there to the end of
the first round. *round*: the later rounds, median over rounds and repeats (minimum to maximum).
*x plain*: median of the ratios to the plain loop of the same turn, which a change of the machine's
load in between spoils least. *CPU*: processor time of a client in a later round, for those that
work in one process. *memory*: peak proportional set size of the process tree. *wire*: bytes of a
round between server and clients, both ways, for those that serialise at all. The best value of a
column is in bold; the plain loop, which is no framework, does not compete.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.peers import workload

PLAIN, OURS = "plain PyTorch loop", "mlecs_lightning"
_TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
PEERS: dict[str, list[str]] = {
    PLAIN: ["benchmarks.peers.plain"],
    OURS: ["benchmarks.peers.ours"],
    f"{OURS}, cohorts of 16": ["benchmarks.peers.ours", "--cohort"],
    f"{OURS}, disk store": ["benchmarks.peers.ours", "--disk"],
    f"{OURS}, a checkpoint each round": ["benchmarks.peers.ours", "--checkpoint"],
    "pfl-research": ["benchmarks.peers.pfl_research"],
    "Lightning, new Trainer a client": ["benchmarks.peers.new_trainer"],
    f"{OURS}, 2 processes": [*_TORCHRUN, "benchmarks.peers.ours"],
    "Flower simulation, model cached (2 workers)": ["benchmarks.peers.flower", "--cached"],
    "Flower simulation, default": ["benchmarks.peers.flower"],
}
TURNS = {"45KB": {8: 5, 32: 3, 128: 2, 512: 1, 2048: 1}, "11.5MB": {8: 5, 32: 1}}
"""Turns for each adapter and number of clients."""
TOLERANCE = 1e-5
PYTHON = harness.REPOSITORY / ".bench-venv/bin/python"
MANY = 512
"""With more clients only the plain loop and ours run: the others would take hours."""


def one(
    peer: str, adapter: str, clients: int, *, rounds: int, folder: Path, python: Path
) -> dict[str, Any]:
    """Run a peer once and return its line."""
    out = folder / "final" / f"{adapter}-{clients}-{list(PEERS).index(peer)}.safetensors"
    out.parent.mkdir(exist_ok=True)
    ran = harness.run(
        [
            *(str(python), "-m", *PEERS[peer], str(folder / adapter), str(out)),
            *("--clients", str(clients), "--rounds", str(rounds)),
        ],
        environment={workload.STARTED: str(time.time()), "FLWR_TELEMETRY_ENABLED": "0"},
    )
    said = json.loads(next(line for line in reversed(ran.lines) if line.startswith("{")))
    reference = folder / "final" / f"{adapter}-{clients}-0.safetensors"
    return {
        **{"peer": peer, "adapter": adapter, "clients": clients},
        **said,
        **{"peak": ran.peak, "seconds": round(ran.seconds, 2), "load": round(ran.load, 2)},
        **{"difference": difference(out, reference), "commit": harness.commit()},
    }


def runnable(names: Sequence[str], python: Path, clients: int) -> list[str]:
    """Return the peers that can run here with a number of clients."""
    if clients > MANY:
        return [name for name in names if name.startswith((PLAIN, OURS))]
    if not python.exists():  # the environment of the peers: these need no other than ours
        return [name for name in names if name.startswith((PLAIN, OURS, "Lightning"))]
    return list(names)


def difference(path: Path, reference: Path) -> float:
    """Return the largest difference of an element of two adapters; infinite if names differ."""
    from safetensors.torch import load_file

    a, b = load_file(path), load_file(reference)
    if a.keys() != b.keys():
        return float("inf")
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def complete(args: argparse.Namespace) -> None:
    """Run what the file lacks, in turns."""
    held = [(r["peer"], r["adapter"], r["clients"]) for r in harness.read_lines(args.out)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    python = args.python
    if not python.exists():
        python = Path(sys.executable)
        left = [name for name in args.peers if name not in runnable(args.peers, args.python, 0)]
        if left:
            print(f"{args.python} is not there: not run: {', '.join(left)}", file=sys.stderr)
    for adapter in args.adapters or TURNS:
        workload.make(args.folder / adapter, workload.SIZES[adapter])
        for clients in args.clients or TURNS[adapter]:
            for turn in range(args.repeats or TURNS[adapter].get(clients, 1)):
                names = runnable(args.peers, args.python, clients)
                for peer in [PLAIN, *(n for n in (*names[turn:], *names[:turn]) if n != PLAIN)]:
                    key = (peer, adapter, clients)
                    if held.count(key) > turn:
                        continue
                    try:
                        line = one(*key, rounds=args.rounds, folder=args.folder, python=python)
                    except RuntimeError as error:
                        line = dict(zip(("peer", "adapter", "clients"), key, strict=True))
                        line["error"] = str(error)
                    held.append(key)
                    harness.append_line(args.out, {**line, "turn": turn})
                    shown = line.get("rounds") or line["error"]
                    print(f"{adapter} {clients} turn {turn} {peer}: {shown}", file=sys.stderr)


# Tables -------------------------------------------------------------------------------------------

HEAD = (
    *("", "import, s", "first round, s", "round, s", "x plain", "CPU, ms a client"),
    *("memory, MiB", "wire, MB", "adapter off by"),
)
_COMPETE = 7  # columns in which the smallest value wins, counted from the second


def row(
    lines: Sequence[Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]]
) -> tuple[list[float | None], list[str]]:
    """Return the values that compete, and the cells of a table's line.

    Args:
        lines: The runs of a peer.
        plain: For each turn the run of the plain loop.
    """
    good = [r for r in lines if r.get("difference", TOLERANCE + 1) <= TOLERANCE]
    if not good:
        why = lines[0].get("error", "").splitlines()[-1:] or ["void: another adapter"]
        return [None] * _COMPETE, [why[0][:60].replace("|", "/"), *[""] * (len(HEAD) - 2)]
    later = [second for r in good for second in r["rounds"][1:]]
    clients = good[0]["clients"]
    cpu = [1e3 * second / clients for r in good for second in r["cpu"][1:]]
    ratios = [
        median(r["rounds"][1:]) / median(plain[r["turn"]]["rounds"][1:])
        for r in good
        if r["turn"] in plain
    ]
    peaks = [r["peak"] / 2**20 for r in good]
    alone = not any(word in good[0]["peer"] for word in ("Flower", "2 processes"))
    wire = good[0]["wire"] / 1e6
    columns: list[tuple[Sequence[float], str]] = [
        ([r["import"] for r in good], "{:.2f}"),
        ([r["rounds"][0] for r in good], "{:.2f}"),
        (later, "{:.3f}"),
        (ratios, "{:.2f}"),
        (cpu if alone else (), "{:.1f}"),
        (peaks, "{:.0f}"),
        ((wire,) if wire else (), "{:.2f}"),
    ]
    values = [median(each) if each else None for each, _ in columns]
    cells = [_cell(each, form) for each, form in columns]
    off = max(r["difference"] for r in good)
    return values, [*cells, f"{off:.0e}" if off else "0"]


def _cell(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    return form.format(values[0]) if len(values) == 1 else harness.spread(values, form)


def table(lines: Iterable[Mapping[str, Any]], adapter: str, clients: int) -> str:
    """Return the Markdown table of one size; empty if nothing was run."""
    own = [r for r in lines if (r["adapter"], r["clients"]) == (adapter, clients)]
    plain = {r["turn"]: r for r in own if r["peer"] == PLAIN and "rounds" in r}
    rows = {p: row([r for r in own if r["peer"] == p], plain) for p in PEERS if _has(own, p)}
    if not rows:
        return ""
    best: list[float] = [
        min(
            (v for p, (values, _) in rows.items() if p != PLAIN and (v := values[k]) is not None),
            default=float("nan"),
        )
        for k in range(_COMPETE)
    ]
    counts = {p: sum(r["peer"] == p for r in own) for p in rows}
    runs = max(counts.values())
    texts = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for peer, (values, cells) in rows.items():
        marked = [
            f"**{cell}**" if k < _COMPETE and peer != PLAIN and values[k] == best[k] else cell
            for k, cell in enumerate(cells)
        ]
        few = "" if counts[peer] == runs else f" ({counts[peer]} turns)"
        texts.append(f"| {peer}{few} | {' | '.join(marked)} |")
    loads = [r["load"] for r in own if "load" in r]
    turns = f"{runs} turn{'' if runs == 1 else 's'}"
    title = f"**{clients} clients, an adapter of {adapter}** ({turns}; load of the machine "
    title += f"{min(loads):.1f} to {max(loads):.1f} at the start of a run)"
    return "\n".join([title, "", *texts])


def _has(lines: Iterable[Mapping[str, Any]], peer: str) -> bool:
    return any(r["peer"] == peer for r in lines)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    results = harness.REPOSITORY / "benchmarks/results"
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--adapters", nargs="+", choices=workload.ADAPTERS)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=results / "loop", help="workload, adapters")
    parser.add_argument("--out", type=Path, default=results / "loop.jsonl")
    parser.add_argument("--python", type=Path, default=PYTHON, help="that of the peers")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args()
    if not args.tables:
        complete(args)
    lines = harness.read_lines(args.out)
    sizes = dict.fromkeys((r["adapter"], r["clients"]) for r in lines)
    print("\n\n".join(table(lines, *size) for size in sizes))


if __name__ == "__main__":
    main()
