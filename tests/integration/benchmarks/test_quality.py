"""benchmarks/quality: every case is a command that is understood, and no case is run twice."""

import json
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import cases as quality_cases
from benchmarks.quality import recall
from benchmarks.quality import study as quality
from tests.integration.parsed import Parsed


def distinct() -> list[Any]:
    """Return every method in its first setting, and every setting with one method.

    All but the first of each configuration file are slow: there are many.
    """
    seen: set[object] = set()
    cases = []
    for case in quality_cases.matrix(list(quality_cases.STUDIES), quality_cases.SEEDS[:1]):
        if {f"a {case.algorithm}", f"s {case.setting}"} <= seen:
            continue
        marks = [pytest.mark.slow] if case.config in seen else []
        cases.append(pytest.param(case, id=f"{case.setting}, {case.algorithm}", marks=marks))
        seen |= {f"a {case.algorithm}", f"s {case.setting}", case.config}
    return cases


@pytest.mark.parametrize("case", distinct())
def test_a_case_is_a_command(case: quality_cases.Case, urfd_root: Path, tmp_path: Path) -> None:
    _, script, *words = case.command(tmp_path, urfd_root)
    assert script == "cli.py"
    cli = Parsed(words)
    assert cli.federation.seed == case.seed
    if "algorithm" in case.options:  # else the one that the configuration names
        assert type(cli.algorithm).__name__ == case.options["algorithm"]
    for key, value in case.options.items():
        option = key.removeprefix("algorithm.init_args.")
        if option != key:
            built = attrgetter(option)(cli.algorithm)
            if isinstance(value, dict):  # of a dataclass: what is given, beside its defaults
                assert value.items() <= asdict(built).items()
            elif option == "components":
                assert set(built) == set(value)
            else:
                assert built == value


@pytest.mark.slow
def test_studies_overlap_in_no_case_and_seeds_come_one_after_another() -> None:
    cases = quality_cases.matrix(list(quality_cases.STUDIES), quality_cases.SEEDS)
    labels = [(c.setting, c.algorithm, c.seed) for c in cases]
    assert len(set(labels)) == len(labels) == len({c.key for c in cases})
    seeds = [c.seed for c in cases]
    assert [s for n, s in enumerate(seeds) if n == 0 or seeds[n - 1] != s] == list(
        quality_cases.SEEDS
    )


def test_what_is_held_is_not_run_again(tmp_path: Path) -> None:
    (case,) = quality_cases.matrix(["main"], [27])[:1]
    out = tmp_path / "lines.jsonl"
    line = {"setting": case.setting, "algorithm": case.algorithm, "seed": 27, "key": case.key}
    out.write_text(json.dumps(line) + "\n")
    assert quality.complete([case], out, root=None, jobs=1) == 0
    assert len(out.read_text().splitlines()) == 1
    out.write_text(json.dumps({**line, "key": "of another configuration"}) + "\n")
    with pytest.raises(SystemExit, match=rf"1 runs of another configuration.*{case.algorithm}"):
        quality.complete([case], out, root=None, jobs=1)


def test_scenes_are_what_the_mean_is_over(tmp_path: Path) -> None:
    cases = quality_cases.matrix(["scenes"], quality_cases.SEEDS)
    assert {case.seed for case in cases} == {quality_cases.SEEDS[0]}
    out = tmp_path / "lines.jsonl"
    facts = {"rounds": 1, "seconds": 36.0, "commit": "abc", "hardware": "a machine", "config": "x"}
    for case in cases:
        score = len(case.setting) / 100 + (case.algorithm == "ML-ECS") / 10
        summary = {"mean": {"all": {"macro_f1": score}}, "server": {"macro_f1": score}}
        named = {"algorithm": case.algorithm, "setting": case.setting, "seed": case.seed}
        with out.open("a") as file:
            file.write(json.dumps({**named, **facts, "summary": summary}) + "\n")
    text = quality.tables(["scenes"], quality_cases.SEEDS, out)["scenes"]
    assert "seeds 27; 21 runs on one thread each, 0.2 h in all; a machine." in text
    assert "| ML-ECS - FedAvg | +0.100 [+0.100, +0.100] | +0.100 [+0.100, +0.100] | 7 |" in text


def test_a_study_shows_its_own_seeds_alone(tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    facts = {"rounds": 1, "seconds": 1.0, "commit": "abc", "hardware": "a machine", "config": "x"}
    summary = {"mean": {"all": {"macro_f1": 0.5}}}
    for seed in quality_cases.SEEDS[:2]:  # the second one is that of the ablation
        named = {"algorithm": "ML-ECS", "setting": "urfall short", "seed": seed}
        with out.open("a") as file:
            file.write(json.dumps({**named, **facts, "summary": summary}) + "\n")
    texts = quality.tables(["search", "ablation"], quality_cases.SEEDS, out)
    assert "; seeds 27; 1 runs" in texts["search"]
    assert "; seeds 27, 34; 2 runs" in texts["ablation"]


def test_recall_stands_beside_what_there_was_to_learn_from() -> None:
    counts = {"hall": [[3, 1, 0, 0], [0, 1, 0, 3], [0, 0, 4, 0]], "server": [[0, 2, 0, 0]] * 3}
    confusion = {"classes": ["one", "two", "five"], "clients": {"hall": counts["hall"]}}
    found = recall.recalls(confusion | {"server": counts["server"]}, {"hall": [7, 0, 2]})
    assert [(*what, value) for what, value in found] == [
        ("labels", "more", 0.75),
        ("none", "none", 0.25),
        ("unlabelled", "1 to 5", 1.0),
        ("labels", "server", 0.0),
        ("none", "server", 1.0),
        ("unlabelled", "server", 0.0),
    ]


@pytest.mark.slow
def test_a_real_run_becomes_a_line_and_a_table(tmp_path: Path) -> None:
    few = {
        "trainer.max_rounds": 1,
        "trainer.limit_test_batches": 1,
        "algorithm.init_args.steps": {"warmup": 1, "public": 1, "private": 1, "server": 1},
    }
    cases = [
        case._replace(options={**case.options, **few})
        for case in quality_cases.matrix(["digits"], [27])
        if case.setting == "digits" and case.algorithm in ("ML-ECS", "FedProx")
    ]
    out = tmp_path / "lines.jsonl"
    assert quality.complete(cases, out, root=None, jobs=1) == 0
    text = quality.tables(["digits"], [27], out)["digits"]
    assert "ML-ECS - FedProx" in text
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- digits:begin -->\nold\n<!-- digits:end -->\nafter\n")
    quality.write(document, {"digits": text, "main": "no place for it"})
    assert document.read_text().startswith("before\n<!-- digits:begin -->\n`python -m")
    assert "\nold\n" not in document.read_text()
    assert "no place" not in document.read_text()
