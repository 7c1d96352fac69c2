"""Quality of ML-ECS, its ablations and the baselines on real data, over settings and seeds.

    python -m benchmarks.quality --root PATH/TO/urfd [--study main ablation]
    python -m benchmarks.quality --study quick      # the quickstart and its rivals

Every case is a run of `cli.py fit` in a process of its own, on one thread, as many at a time as
there are cores. One JSON line is kept for each case, so that a matrix that was stopped goes on
where it was; delete the file to begin anew. All methods get the same data, models, steps, rounds,
learning rate and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, append_line, commit, hardware, read_lines
from benchmarks.quality.cases import BYTES, SCORES, SEEDS, STUDIES, Case, matrix
from benchmarks.quality.settings import URFALL


def run(case: Case, *, root: Path | None) -> dict[str, Any]:
    """Run a case and return its line.

    Raises:
        RuntimeError: If the run fails; with the end of what it said.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            case.command(Path(folder), root),
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError("\n".join(ran.stderr.splitlines()[-5:]))
        summary = json.loads((Path(folder) / case.key / "version_0/summary.json").read_text())
    return {
        **{"algorithm": case.algorithm, "setting": case.setting, "seed": case.seed},
        **{"rounds": summary["rounds"], "seconds": round(time.perf_counter() - began, 1)},
        **{
            "commit": commit(),
            "hardware": hardware(),
            "key": case.key,
            "config": case.config,
            "options": case.options,
        },
        "summary": summary,
    }


def held(path: Path) -> dict[tuple[str, str, int], str]:
    """Return the key of each run that a file holds, by setting, algorithm and seed."""
    lines = read_lines(path)
    return {(each["setting"], each["algorithm"], each["seed"]): each["key"] for each in lines}


def complete(cases: Sequence[Case], out: Path, *, root: Path | None, jobs: int) -> int:
    """Run the cases that the file lacks, and add their lines; return how many failed."""
    from rich.console import Console

    console, failed = Console(stderr=True), 0
    known = held(out)
    todo = [case for case in cases if (case.setting, case.algorithm, case.seed) not in known]
    other = [c for c in cases if known.get((c.setting, c.algorithm, c.seed), c.key) != c.key]
    if other:
        raise SystemExit(
            f"{out} holds {len(other)} runs of another configuration, such as {other[0].setting}, "
            f"{other[0].algorithm}, seed {other[0].seed}: move it away, or name another with --out"
        )
    console.print(f"{len(cases) - len(todo)} of {len(cases)} runs are in {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, case, root=root): case for case in todo}
        for count, each in enumerate(as_completed(running), start=1):
            case = running[each]
            name = f"[{count}/{len(todo)}] {case.setting}, {case.algorithm}, seed {case.seed}"
            try:
                line = each.result()
            except RuntimeError as error:
                failed += 1
                console.print(f"{name}: FAILED\n{error}", markup=False)
                continue
            append_line(out, line)
            mean = line["summary"]["mean"]
            console.print(
                f"{name}: macro-F1 all {mean['all']['macro_f1']:.3f}, own "
                f"{mean['own'].get('macro_f1', float('nan')):.3f}, server "
                f"{line['summary']['server']['macro_f1']:.3f}; {line['seconds']:.0f} s",
                markup=False,
                highlight=False,
            )
    return failed


# Tables -------------------------------------------------------------------------------------------


def tables(studies: Sequence[str], seeds: Sequence[int], out: Path) -> dict[str, str]:
    """Return for each study its Markdown: means, and differences to its reference seed by seed.

    Of each study its own cases alone: another one may have more seeds of the same setting. Under
    ``STUDY-short`` the means of the first scores of some algorithms, if the study says which.
    """
    from mlecs_lightning.report.markdown import to_markdown
    from mlecs_lightning.report.results.matrix import paired, table
    from mlecs_lightning.report.results.rows import read_lines as read_rows

    rows = {(r.setting, r.algorithm, r.seed): r for r in read_rows(out)}
    texts = {}
    for study in studies:
        settings, algorithms, _, pooled, reference, metrics, few = STUDIES[study]
        labels = [reference, *(name for name in algorithms if name != reference)]
        cases = {(c.setting, c.algorithm, c.seed) for c in matrix([study], seeds)}
        # The reference may be a run of another study.
        cases |= {(setting, reference, seed) for setting, _, seed in cases}
        shown = cases & rows.keys()
        if not shown:
            continue
        own = [rows[key] for key in rows if key in shown]
        if pooled:
            own = [replace(r, setting=study, seed=settings.index(r.setting)) for r in own]
        order = [*settings, *labels]
        present = {r.algorithm for r in own}
        differences = [
            each
            for label in labels[1:]
            if {label, reference} <= present
            for metric in SCORES
            for each in paired(own, label, reference, metric)
        ]
        made = origin(out, shown, study=study)
        counted = "runs" if pooled else "seeds"
        means = to_markdown(table(own, metrics, order=order), counted=counted)
        gains = to_markdown(differences, counted=counted)
        texts[study] = f"{made}\n\n{means}\n{gains}".strip()
        if few:
            made = origin(out, {key for key in shown if key[1] in few}, study=study)
            entries = table(
                [r for r in own if r.algorithm in few], (*SCORES, *BYTES), order=[*settings, *few]
            )
            # A label says there what the algorithm is.
            short = to_markdown([replace(e, differs="") for e in entries], counted=counted)
            texts[f"{study}-short"] = f"{made}\n\n{short}".strip()
    return texts


def origin(out: Path, shown: Set[tuple[str, str, int]], *, study: str) -> str:
    """Return where figures come from: command, settings, commits, seeds and hardware.

    Args:
        out: The lines.
        shown: Setting, algorithm and seed of the runs that are shown.
        study: The name of the study.
    """
    own = [e for e in read_lines(out) if (e["setting"], e["algorithm"], e["seed"]) in shown]
    settings = sorted({line["setting"] for line in own})
    if len(settings) > 2 and len({name[:-1] for name in settings}) == 1:
        settings = [f"{settings[0]} to {settings[-1].split()[-1]}"]  # they are numbered
    root = "--root PATH " if any(each["config"] == URFALL for each in own) else ""
    said = {
        key: ", ".join(str(each) for each in sorted({line[key] for line in own}))
        for key in ("commit", "seed", "hardware")
    }
    return (
        f"`python -m benchmarks.quality {root}--study {study}`, {', '.join(settings)}; commit "
        f"{said['commit']}; seeds {said['seed']}; {len(own)} runs on one thread each, "
        f"{sum(each['seconds'] for each in own) / 3600:.1f} h in all; {said['hardware']}."
    )


def write(document: Path, studies: Mapping[str, str]) -> None:
    """Put each study between its markers in a document; a study without markers is left out."""
    from mlecs_lightning.report.markdown import replace_between

    text = document.read_text(encoding="utf-8")
    for study, block in studies.items():
        if f"<!-- {study}:begin -->" in text:
            text = replace_between(text, block, name=study)
    document.write_text(text, encoding="utf-8")


def main() -> int:
    """Run what is missing, print the tables, and write them into documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the UR Fall data")
    parser.add_argument("--study", nargs="+", choices=[*STUDIES], default=[*STUDIES])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="run these algorithms alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/quality.jsonl")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--write", nargs="*", type=Path, default=[], help="documents with markers")
    args = parser.parse_args()
    cases = matrix(args.study, args.seeds)
    cases = [case for case in cases if not args.only or case.algorithm in args.only]
    if args.root is None and any(case.config == URFALL for case in cases) and not args.tables:
        parser.error("--root: the folder of the UR Fall data")
    root = args.root.resolve() if args.root else None
    failed = 0 if args.tables else complete(cases, args.out, root=root, jobs=args.jobs)
    texts = tables(args.study, args.seeds, args.out)
    for study, text in texts.items():
        if not study.endswith("-short"):
            print(f"## {study}\n\n{text}\n")
    for document in args.write:
        write(document, texts)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
