import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from mlecs_lightning.report.markdown import replace_between, to_markdown
from mlecs_lightning.report.results.budget import MARKED
from mlecs_lightning.report.results.configs import flat
from mlecs_lightning.report.results.matrix import (
    MatrixError,
    Row,
    Stat,
    best,
    cell,
    paired,
    read_lines,
    table,
    unmatched,
    value,
)

F1, UP = "mean.all.macro_f1", "communication.uplink_bytes"


def line(
    algorithm: str, seed: int, score: float, *, setting: str = "five", up: int = 1000
) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "setting": setting,
        "seed": seed,
        "rounds": 6,
        "seconds": 12.4,
        "commit": "abc",
        "summary": {
            "algorithm": algorithm,
            "mean": {"all": {"macro_f1": score}},
            "clients": {"hall": {"all": {"macro_f1": score - 0.1}}, "attic": {"all": {}}},
            "communication": {"uplink_bytes": up},
        },
    }


def row(*args: Any, **kwargs: Any) -> Row:
    return Row(**line(*args, **kwargs))


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


# Reading


def test_lines_are_read_in_their_order_and_empty_ones_are_skipped(tmp_path: Path) -> None:
    a, b = line("B", 2, 0.5) | {"more": 1}, line("A", 1, 0.25)
    rows = read_lines(write(tmp_path / "a.jsonl", a, "", b))
    assert rows == [row("B", 2, 0.5), row("A", 1, 0.25)]


def test_every_broken_line_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    whole = line("A", 1, 0.5)
    path = write(
        tmp_path / "a.jsonl",
        whole,
        json.dumps(whole)[:40],
        {k: v for k, v in whole.items() if k != "seed"},
        whole | {"seed": "1"},
        "[1]",
        whole | {"commit": "later"},
        whole | {"rounds": True},
    )
    missing = tmp_path / "b.jsonl"
    with pytest.raises(MatrixError) as raised:
        read_lines(path, missing)
    faults = str(raised.value).splitlines()
    assert [f.split(": ")[0] for f in faults] == [
        *(f"{path}:{n}" for n in (2, 3, 4, 5, 6, 7)),
        str(missing),
    ]
    for fault, said in zip(
        faults,
        (
            "cut short",
            "'seed' is missing",
            "'seed' is '1', allowed: a whole number",
            "one object",
            f"seed 1 is also in {path}:1",
            "'rounds' is True",
            "No such file",
        ),
        strict=True,
    ):
        assert said in fault


def test_a_run_in_two_files_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", line("A", 1, 0.5))
    two = write(tmp_path / "b.jsonl", line("A", 1, 0.6))
    with pytest.raises(MatrixError, match=r"b\.jsonl:1: .* also in .*a\.jsonl:1"):
        read_lines(one, two)


def test_values_are_found_by_their_path() -> None:
    ours = row("A", 1, 0.5)
    assert value(ours, F1) == 0.5
    assert value(ours, "worst.all.macro_f1") == 0.4  # attic has no test samples
    assert value(ours, "worst.own.macro_f1") is None
    assert value(ours, "seconds") == 12.4
    assert value(ours, "server.macro_f1") is None
    assert value(ours, "mean.all") is None
    assert value(row("A", 1, math.nan), F1) is None


def test_a_ceiling_has_no_communication() -> None:
    assert value(row("Centralized", 1, 0.9, up=0), UP) is None
    assert value(row("Standalone", 1, 0.9, up=0), UP) == 0


# Statistics


def test_mean_and_sample_deviation_over_seeds() -> None:
    (entry,) = table([row("A", 3, 0.3), row("A", 1, 0.1), row("A", 2, 0.5)], [F1, UP])
    assert entry.seeds == (1, 2, 3)
    stat = entry.stats[F1]
    assert stat is not None
    assert stat.n == 3
    assert stat.mean == pytest.approx(0.3)
    assert stat.std == pytest.approx(0.2)  # of the population it would be 0.163


def test_a_single_seed_has_no_spread_and_a_nan_does_not_count() -> None:
    (entry,) = table([row("A", 1, 0.5), row("A", 2, math.nan)], [F1, "server.macro_f1"])
    assert entry.stats == {F1: Stat(0.5, None, 1), "server.macro_f1": None}
    assert cell(F1, entry.stats[F1], n=len(entry.seeds)) == "0.500 (n = 1)"


def test_settings_are_kept_apart_and_labels_of_order_come_first() -> None:
    rows = [
        row("B", 1, 0.1),
        row("A", 1, 0.2, setting="three"),
        row("A", 1, 0.3),
        row("C", 1, 0.4),
    ]
    named = [(e.setting, e.algorithm) for e in table(rows, [F1], order=["three", "C"])]
    assert named == [("three", "A"), ("five", "C"), ("five", "B"), ("five", "A")]
    assert [e.stats[F1].mean for e in table(rows, [F1]) if e.stats[F1]] == [0.1, 0.3, 0.4, 0.2]


def test_paired_difference_is_over_common_seeds_with_a_t_interval() -> None:
    a, b = {1: 0.50, 2: 0.60, 3: 0.70, 9: 0.1}, {3: 0.75, 1: 0.51, 2: 0.63, 8: 0.9}
    rows = [row("A", seed, x) for seed, x in a.items()] + [row("B", s, x) for s, x in b.items()]
    (found,) = paired(rows, "A", "B", F1)
    assert found.seeds == (1, 2, 3)
    assert found.mean == pytest.approx(0.03)  # differences 0.01, 0.03, 0.05: s = 0.02
    half = 4.30265 * 0.02 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert (found.low, found.high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    test = ttest_rel([b[s] for s in (1, 2, 3)], [a[s] for s in (1, 2, 3)]).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(test))


def test_paired_keeps_settings_apart_and_needs_two_seeds_for_an_interval() -> None:
    rows = [row("A", 1, 0.5), row("B", 1, 0.4), row("A", 1, 0.5, setting="three")]
    rows += [row(label, s, 0.5, setting="same") for s in (1, 2) for label in "AB"]
    one, same = paired(rows, "A", "B", F1)
    assert (one.setting, one.low, one.high) == ("five", None, None)
    assert one.mean == pytest.approx(-0.1)
    assert (same.setting, same.mean, same.low, same.high) == ("same", 0, 0, 0)


def test_paired_names_what_there_is() -> None:
    with pytest.raises(MatrixError, match=r"'FedAwg'; there are \['A', 'B'\]"):
        paired([row("A", 1, 0.5), row("B", 1, 0.5)], "A", "FedAwg", F1)


# Tables


def test_the_best_is_no_ceiling_no_single_one_and_sends_something() -> None:
    rows = [
        row("Centralized", 1, 0.99, up=0),
        row("A", 1, 0.8004, up=500),
        row("B", 1, 0.7996, up=510),
        row("C", 1, 0.7, up=550),
        row("Standalone", 1, 0.7, up=0),
    ]
    entries = table(rows, [F1, UP])
    assert best(entries, F1) == {1, 2}  # the same to the digits that are shown
    assert best(entries, UP) == {1}
    assert best(entries[1:2], F1) == set()


def spent(
    algorithm: str, score: float, *, seconds: float = 12.0, rounds: int = 6, **more: Any
) -> Row:
    options = {"trainer.max_rounds": rounds, **more.pop("options", {})}
    found = row(algorithm, 1, score, **more)
    return replace(found, seconds=seconds, rounds=rounds, settings=flat(options))


STEPS = "algorithm.init_args.steps"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"up": 1101}, "bytes"),
        ({"up": 0}, "bytes"),
        ({"seconds": 24.1}, "seconds"),
        ({"rounds": 3}, "rounds x steps"),
        ({"options": {STEPS: {"public": 10, "private": 10}}}, "rounds x steps"),
        ({"options": {STEPS: {"public": None}}}, "rounds x steps"),
        ({"options": {"data.init_args.batch_size": 64}}, "rounds x steps"),
        ({"options": {"trainer.participation.fraction": 0.5}}, "rounds x steps"),
        ({"rounds": 3, "seconds": 90.0, "up": 9}, "rounds x steps, bytes, seconds"),
    ],
)
def test_nothing_is_best_across_unequal_budgets(other: dict[str, Any], why: str) -> None:
    entries = table([spent("A", 0.5), spent("B", 0.9, **other)], [F1])
    assert best(entries, F1) == set()
    assert unmatched(entries) == (
        f"Not compared, as no other row has the same budget: A ({why}); B ({why})."
    )
    # A third with the budget of the first is compared with that one alone.
    three = table([spent("A", 0.5), spent("B", 0.9, **other), spent("C", 0.6)], [F1])
    assert best(three, F1) == {2}
    assert unmatched(three) == f"Not compared, as no other row has the same budget: B ({why})."
    assert "**" not in to_markdown(entries)
    assert unmatched(entries) in to_markdown(entries)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"up": 1000}, {"up": 1100}),
        ({"seconds": 12.0}, {"seconds": 24.0}),
        ({"seconds": 12.0}, {"seconds": math.nan}),
        (
            {"rounds": 6, "options": {STEPS: {"public": 20, "warmup": 5}}},
            {"rounds": 3, "options": {STEPS: {"public": 40, "warmup": 5}}},
        ),
        ({}, {"options": {"edge.optimizer.init_args.lr": 0.1}}),  # costs nothing
    ],
)
def test_rows_of_one_budget_are_compared(one: dict[str, Any], other: dict[str, Any]) -> None:
    entries = table([spent("A", 0.5, **one), spent("B", 0.9, **other)], [F1])
    assert best(entries, F1) == {1}
    assert unmatched(entries) == ""


def test_bytes_and_seconds_are_compared_whatever_they_are() -> None:
    entries = table(
        [spent("A", 0.5, up=10, seconds=90.0), spent("B", 0.5, up=900)], [UP, "seconds"]
    )
    assert best(entries, UP) == set()  # they took other times
    assert best(table([spent("A", 0.5, up=10), spent("B", 0.5, up=900)], [UP]), UP) == {0}
    same = table([spent("A", 0.5, seconds=90.0), spent("B", 0.5)], ["seconds"])
    assert best(same, "seconds") == {1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"seed_everything": 3, "trainer.name": "x", "algorithm.init_args.mu": 1}, ""),
        ({"edge.optimizer.init_args.lr": 0.01}, "edge optimizer lr 0.01 (none)"),
        ({"data.init_args.batch_size": 64}, "batch 64 (none)"),
        ({"data.init_args.alpha": 64}, ""),  # of the setting, not of the row
        ({f"{STEPS}.public": 5}, "steps public 5 (none)"),
        ({"edge.backbone.model": "pocket/xs"}, "edge backbone pocket/xs (none)"),
        (
            {"trainer.codec": {"class_path": "mlecs_lightning.DWC", "init_args": {"bits": 4}}},
            "codec DWC (none)",
        ),
        (
            {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6},
            "a 1 (none), b 2 (none), c 3 (none), d 4 (none), 2 more",
        ),
    ],
)
def test_a_row_says_in_what_its_training_differs(options: dict[str, Any], words: str) -> None:
    first, other = table([spent("A", 0.5), spent("B", 0.9, options=options)], [F1])
    assert first.differs == ""
    assert other.differs == words
    assert (f"| {words} |\n" in to_markdown([first, other])) == bool(words)


@pytest.mark.parametrize(
    ("rounds", "words"),
    [((6, 6), ""), ((3, 3), "rounds 3 (6)"), ((6, 3), "rounds 3 to 6 (6)")],
)
def test_a_row_says_that_it_had_other_rounds(rounds: tuple[int, int], words: str) -> None:
    rows = [row("A", seed, 0.5) for seed in (1, 2)]
    rows += [replace(row("B", s, 0.5), rounds=each) for s, each in zip((1, 2), rounds, strict=True)]
    assert [entry.differs for entry in table(rows, [F1])] == ["", words]


def test_options_of_a_line_are_its_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", line("A", 1, 0.5) | {"options": {"a": {"b": 1}}})
    assert read_lines(path)[0].settings == {"a.b": "1"}
    write(path, line("A", 1, 0.5) | {"options": [1]})
    with pytest.raises(MatrixError, match=r"'options' is \[1\], allowed: an object"):
        read_lines(path)


def test_markdown_has_the_best_of_each_setting_in_bold() -> None:
    rows = [
        *(row("A", s, 0.5 + s / 100, up=1_130_000) for s in (1, 2)),
        *(row("B", s, 0.6, up=1_200_000) for s in (1, 2)),
        row("A", 1, 0.3, setting="three", up=0),
        row("B", 1, 0.2, setting="three", up=100),
    ]
    assert to_markdown(table(rows, [F1, UP, "server.macro_f1"])) == (
        "| setting | algorithm | clients, all: macro-F1 | bytes up | seeds |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| five | A | 0.515 ± 0.007 | **1.13 MB** | 2 |\n"
        "| five | B | **0.600 ± 0.000** | 1.2 MB | 2 |\n"
        "| three | A | 0.300 | 0 | 1 seed, no spread |\n"
        "| three | B | 0.200 | 100 B | 1 seed, no spread |\n"
        f"\n{MARKED}\n\n"
        "three: Not compared, as no other row has the same budget: A (bytes); B (bytes).\n"
    )


def test_markdown_of_one_setting_does_not_name_it_and_shows_labels_as_they_are() -> None:
    lines = to_markdown(table([row("a|b <i>*_c_*", 1, 0.5)], [F1])).splitlines()
    assert lines[0] == "| algorithm | clients, all: macro-F1 | seeds |"
    assert lines[2] == r"| a\|b &lt;i&gt;\*\_c\_\* | 0.500 | 1 seed, no spread |"


def test_markdown_of_differences() -> None:
    rows = [row("A", s, 0.5) for s in (1, 2)] + [row("B", s, 0.5 + s / 10) for s in (1, 2)]
    assert to_markdown(paired(rows, "A", "B", F1)) == (
        "| difference | clients, all: macro-F1 | seeds |\n"
        "| --- | ---: | ---: |\n"
        "| B - A | +0.150 [-0.485, +0.785] | 2 |\n"
    )
    assert to_markdown([]) == ""


def test_markdown_of_differences_has_a_row_for_a_pair_and_a_column_for_a_metric() -> None:
    own = "mean.own.macro_f1"
    rows = [row(label, seed, 0.5) for label in "AB" for seed in (1, 2)]
    for each in (rows[0], rows[2]):  # only of the first seed
        each.summary["mean"]["own"] = {"macro_f1": 0.25}
    rows += [row("A", 1, 0.5, setting="six"), row("B", 1, 0.75, setting="six")]
    both = [each for metric in (F1, own) for each in paired(rows, "A", "B", metric)]
    assert to_markdown(both) == (
        "| setting | difference | clients, all: macro-F1 | clients, own: macro-F1 | seeds |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| five | B - A | +0.000 [+0.000, +0.000] | +0.000 (n = 1) | 2 |\n"
        "| six | B - A | +0.250 | n/a | 1 seed, no spread |\n"
    )


def test_text_between_markers_is_replaced_and_nothing_else() -> None:
    old = "a\n<!-- results:begin -->\nold\n<!-- results:end -->\nz\n"
    new = replace_between(old, "| t |\n")
    assert new == "a\n<!-- results:begin -->\n| t |\n<!-- results:end -->\nz\n"
    assert replace_between(new, "| t |\n") == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- results:begin -->",
        "<!-- results:end --><!-- results:begin -->",
        "<!-- results:begin --><!-- results:end --><!-- results:end -->",
    ],
)
def test_markers_that_are_missing_or_wrong_are_refused(text: str) -> None:
    with pytest.raises(MatrixError, match="results:begin"):
        replace_between(text, "x")
