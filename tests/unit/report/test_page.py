import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning.report.page import title, to_html, to_markdown_page
from mlecs_lightning.report.results.reading import ReportError, Run, read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, whole, write_run

EVIL = "<script>alert('x')</script> & $x_1$ | `b` <b onclick=\"y\">"


class Page(HTMLParser):
    """The page as a browser sees it: tags, headings, rows of cells, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.best: list[str] = []
        self.titles: list[str] = []
        self.captions: list[str] = []
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.marked = "best" in (found.get("class") or "")
        elif tag in ("h2", "h3", "figcaption"):
            {"figcaption": self.captions}.get(tag, self.titles).append("")
        if tag != "small":
            self.open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.marked:
            self.best.append(self.rows[-1][-1])
        if tag != "small":
            self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open in ("h2", "h3"):
            self.titles[-1] += data
        elif self.open == "figcaption":
            self.captions[-1] += data

    def row(self, first: str, number: int = 0) -> list[str]:
        return [row for row in self.rows if row and row[0] == first][number]


def page(runs: list[Run], **options: Any) -> Page:
    return Page(to_html(runs, **options))


@pytest.fixture
def four(tmp_path: Path) -> list[Run]:
    """Two algorithms with two seeds each."""
    scores = {("MLECS", 1): 0.50, ("MLECS", 2): 0.54, ("FedAvg", 1): 0.6, ("FedAvg", 2): 0.6}
    return read_runs([whole(tmp_path / f"{a}{s}", a, s, x) for (a, s), x in scores.items()])


def test_a_real_run_has_every_section_that_it_can_have(mlecs_run: SimpleNamespace) -> None:
    found = page(read_runs([mlecs_run.folder]))
    assert found.titles == [
        "unknown data, 3 clients",
        "Results",
        "Learning curves: macro-F1",
        "Learning curves: loss",
        "Quality against bytes",
        "Quality against seconds",
        "Communication",
        "Classes",
        "Clients",
        "Volumes",
        "Alignment",
        "Aggregation error",
        "Runs",
    ]
    score = mlecs_run.summary["clients"]["hall"]["all"]["macro_f1"]
    assert found.row("hall") == ["hall", "-", "-", "●", f"{score:.3f}", found.row("hall")[5]]
    assert {"mean of the clients", "server", "kitchen", "hall", "study"} <= set(found.captions)
    assert {"MLECS: mean of the clients", "MLECS: server"} <= set(found.captions)


def test_the_page_asks_for_nothing_and_runs_nothing(four: list[Run]) -> None:
    text = to_html(four)
    found = Page(text)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "base"}
    for _, attributes in found.tags:
        for key in ("src", "href", "srcset", "data"):
            assert (attributes.get(key) or "#").startswith("#")
        assert not [key for key in attributes if key.startswith("on")]
    assert not re.search(r"@import|@font-face|url\((?!#)", text)
    assert text.count("http") == text.count("http://www.w3.org/2000/svg")
    assert len(text) < 500_000


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(four: list[Run]) -> None:
    assert to_html(four) == to_html(four)


def test_results_are_means_over_seeds_with_the_best_marked(four: list[Run]) -> None:
    found = page(four)
    assert found.row("MLECS") == [
        *("MLECS", "2", "0.520 ± 0.028", "0.620 ± 0.028", "0.720 ± 0.028", "1 kB", "3 kB")
    ]
    assert found.row("FedAvg")[2] == "0.600 ± 0.000"
    assert found.row("MLECS", 1)[2] == "0.620 ± 0.028"  # Rouge-Lsum, in a table of its own
    assert {cell.split()[0] for cell in found.best} == {"0.600", "0.700", "0.800", "0.900"}
    assert found.row("best constant sentence") == [
        *("best constant sentence", "", "0.100", "0.200", "0.300", "", "")
    ]


def test_differences_are_paired_by_seed_against_the_reference(four: list[Run]) -> None:
    found = page(four)
    assert "Differences from MLECS" in found.titles
    cells = found.row("FedAvg", 2)
    # 0.10 and 0.06: mean 0.08, s / sqrt(2) = 0.02, t(0.975, 1) = 12.706
    assert cells[:4] == ["FedAvg", "+0.080", "[-0.174, +0.334]", "2"]
    other = page(four, reference="FedAvg")
    assert other.row("MLECS", 2)[:3] == ["MLECS", "-0.080", "[-0.334, +0.174]"]
    with pytest.raises(ReportError, match=r"'FedSGD'.*\['MLECS', 'FedAvg'\]"):
        to_html(four, reference="FedSGD")


@pytest.mark.slow
def test_one_seed_has_no_differences_and_one_run_no_best(tmp_path: Path) -> None:
    found = page(read_runs([whole(tmp_path / "a"), whole(tmp_path / "b", "FedAvg")]))
    assert not [title for title in found.titles if title.startswith("Differences")]
    alone = page(read_runs([tmp_path / "a"]))
    assert alone.best == []
    assert "±" not in to_html(read_runs([tmp_path / "a"]))


@pytest.mark.parametrize(
    ("trainer", "edge", "words"),
    [
        ({}, {}, None),
        ({"codec": {"class_path": "x.DWC", "init_args": {"bits": 4}}}, {}, "codec DWC (none)"),
        # The key of an earlier version.
        ({"client_fraction": 0.5}, {}, "participation fraction 0.5 (none)"),
        ({}, {"optimizer": {"init_args": {"lr": 0.1}}}, "edge optimizer lr 0.1 (0.01)"),
        ({}, {"backbone": {"model": "pocket/xs"}}, "edge backbone pocket/xs (pocket/slm)"),
    ],
)
def test_a_row_says_in_what_its_training_differs(
    tmp_path: Path, trainer: dict[str, Any], edge: dict[str, Any], words: str | None
) -> None:
    usual = {"optimizer": {"init_args": {"lr": 0.01}}, "backbone": {"model": "pocket/slm"}}
    for algorithm, own, parts in (("MLECS", {}, {}), ("FedAvg", trainer, edge)):
        write_run(
            tmp_path / algorithm,
            config=a_config(algorithm, **own) | {"edge": usual | parts},
            summary=a_summary(algorithm),
        )
    runs = read_runs([tmp_path / "MLECS", tmp_path / "FedAvg"])
    found = page(runs)
    assert found.row("FedAvg")[1] == (words or "1 seed, no spread")
    assert found.row("MLECS")[1] == ("" if words else "1 seed, no spread")
    assert ("| FedAvg | " + (words or "1 seed")) in to_markdown_page(runs)
    # A row of the constant sentence has as many cells as the others.
    assert len({len(row) for row in found.rows[1:5]}) == 1


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({}, "Bold is the best among rows of one budget"),
        ({"rounds": 3}, "No score is bold. Not compared, as no other row has the same budget"),
        (
            {"seconds": 99.0},
            "No score is bold. Not compared, as no other row has the same budget: MLECS (seconds)",
        ),
        ({"communication": {"uplink_bytes": 9, "downlink_bytes": 9}}, "FedAvg (bytes)."),
    ],
)
def test_the_page_says_why_nothing_is_bold(tmp_path: Path, more: dict[str, Any], note: str) -> None:
    summaries = {"MLECS": a_summary(), "FedAvg": a_summary("FedAvg", 1, 0.9, **more)}
    for name, summary in summaries.items():
        write_run(tmp_path / name, config=a_config(name), summary=summary)
    text = to_html(read_runs([tmp_path / "MLECS", tmp_path / "FedAvg"]))
    assert note in text
    scores = [each for each in Page(text).best if "B" not in each]
    assert bool(scores) == (not more)


def test_runs_that_differ_in_batch_size_are_of_one_setting(tmp_path: Path) -> None:
    for size in (32, 64):
        config = a_config(seed=size)
        config["data"]["init_args"]["batch_size"] = size
        write_run(tmp_path / str(size), config=config, summary=a_summary(seed=size))
    runs = read_runs([tmp_path / "32", tmp_path / "64"])
    assert len({run.setting for run in runs}) == 1
    found = page(runs)
    assert found.row("MLECS: batch_size 64")[1] == "batch 64 (32)"
    assert found.best == []


def test_a_run_that_was_done_again_is_counted_once(tmp_path: Path) -> None:
    places = [whole(tmp_path / "a", score=0.4), whole(tmp_path / "b", score=0.5)]
    found = page(read_runs(places))
    assert found.row("MLECS")[1:3] == ["1 seed, no spread", "0.500"]
    assert found.row(str(places[0]))[-1] == "done again: not counted"
    assert found.row(str(places[1]))[-1] == "finished"


def test_an_unfinished_run_is_marked_and_has_its_curves(tmp_path: Path) -> None:
    whole(tmp_path / "a")
    stopped = write_run(tmp_path / "b", config=a_config(max_rounds=9), history=a_history(1, 0.3))
    found = page(read_runs([tmp_path / "a", stopped]))
    label = "MLECS: max_rounds 9, unfinished"
    text = to_html(read_runs([tmp_path / "a", stopped]))
    assert text.count("not in this table: MLECS: max_rounds 9 after 1 round (seeds: 1).") == 1
    assert not any(row[0].startswith("MLECS: max_rounds 9 after") for row in found.rows if row)
    assert found.row(str(stopped))[-4:] == ["1", "1 of 9", "-", "unfinished"]
    assert f"<span>{label}</span>" in to_html(read_runs([tmp_path / "a", stopped]))
    alone = page(read_runs([stopped]))
    assert "Learning curves: macro-F1" in alone.titles
    assert "Clients" in alone.titles


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    summary = a_summary(communication={}, aggregation_error=[], faults={})
    found = page(read_runs([write_run(tmp_path / "v", config=a_config(), summary=summary)]))
    assert found.titles == ["URFall, 2 clients", "Results", "Clients", "Runs"]


def test_text_alone_is_scored_by_rouge(tmp_path: Path) -> None:
    summary = copy.deepcopy(a_summary())
    for views in (summary["mean"], summary["constant"], *summary["clients"].values()):
        for view in ("own", "all", "server"):
            if view in views:
                del views[view]["macro_f1"]
    del summary["server"]["macro_f1"]
    history = [{k: v for k, v in row.items() if "macro" not in k} for row in a_history()]
    folder = write_run(tmp_path / "v", config=a_config(), summary=summary, history=history)
    text = to_html(read_runs([folder]))
    assert "macro-F1" not in text
    assert Page(text).row("MLECS")[2] == "0.600"


def test_modalities_that_differ_by_seed_are_shares(tmp_path: Path) -> None:
    lines = []
    for algorithm in ("MLECS", "FedAvg"):
        for seed, has in ((1, ["acc", "rgb"]), (2, ["rgb"]), (3, ["rgb"])):
            summary = a_summary(algorithm, seed)
            summary["clients"]["hall"]["modalities"] = has
            line = {"algorithm": algorithm, "setting": "drawn", "seed": seed, "rounds": 2}
            lines.append(line | {"seconds": 1.0, "commit": "abc", "summary": summary})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = page(read_runs([path]))
    assert found.row("client")[1:4] == ["acc", "depth", "rgb"]
    assert found.row("kitchen")[1:4] == ["●", "●", "-"]
    assert found.row("hall")[1:4] == ["1/3", "-", "●"]


@pytest.mark.slow
def test_the_reference_comes_first_everywhere(four: list[Run]) -> None:
    for reference, first in ((None, "MLECS"), ("FedAvg", "FedAvg")):
        found = page(list(reversed(four)), reference=reference)
        assert found.rows[2][0] == first
        text = to_html(list(reversed(four)), reference=reference)
        legend = re.findall(r"<span>(\w+)</span>", text)
        assert legend[0] == first


def test_a_client_may_have_dots_in_its_name(tmp_path: Path) -> None:
    summary = a_summary()
    summary["clients"] = {"room 1.2": summary["clients"]["hall"]}
    found = page(read_runs([write_run(tmp_path / "v", config=a_config(), summary=summary)]))
    assert found.row("room 1.2") == ["room 1.2", "●", "0.500", "0.600"]


def test_epsilon_is_shown_where_it_was_counted(tmp_path: Path) -> None:
    told = {"epsilon": 3.39997, "delta": 0.01, "noise_multiplier": 1.5, "clip": 0.25}
    told |= {"sampling_rate": 0.5, "where": "server", "secure_noise": False}
    folders = [
        write_run(
            tmp_path / "a", config=a_config("FedAvg"), summary=a_summary("FedAvg", privacy=told)
        ),
        write_run(tmp_path / "b", config=a_config(), summary=a_summary()),
    ]
    shown = ["3.4", "n/a", "0.01", "1.5", "0.25", "0.5", "server", "seed"]
    rows = Page(to_html(read_runs(folders))).rows
    assert [row for row in rows if row[-1] == "seed"] == [["FedAvg", "1", "2", *shown]]
    assert not [row for row in Page(to_html(read_runs(folders[1:]))).rows if "seed" in row[-1:]]


def test_faults_are_counted_and_told(tmp_path: Path) -> None:
    event = {"round": 1, "client": EVIL, "kind": "crash", "stage": "public", "error": EVIL}
    faults = {"dropout": 0, "crash": 150, "events": [event] * 150}
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(faults=faults))
    text = to_html(read_runs([folder]))
    found = Page(text)
    assert found.row("algorithm", 3) == ["algorithm", "crash"]
    assert ["MLECS", "150"] in found.rows
    assert found.rows.count(["MLECS", "1", "1", EVIL, "crash", "public", EVIL]) == 100
    assert "the first 100 of 150" in text


def test_text_from_files_is_shown_and_never_run(tmp_path: Path) -> None:
    summary = a_summary(EVIL)
    summary["clients"] = {EVIL: summary["clients"]["kitchen"] | {"modalities": [EVIL]}}
    summary["communication"]["by_component"] = {"uplink": {EVIL: 5}}
    config = a_config() | {"clients": {EVIL: {"modalities": [EVIL]}}}
    config["data"] = {"class_path": f"x.{EVIL}"}
    history = [
        {key.replace("kitchen", EVIL): number for key, number in row.items()} for row in a_history()
    ]
    for k in (0, 1):
        write_run(
            tmp_path / "<i>" / f"version_{k}",
            config=config | {"seed_everything": k},
            summary=summary | {"seed": k},
            history=history,
        )
    runs = read_runs([tmp_path / "<i>"])
    text = to_html(runs)
    found = Page(text)
    assert not {tag for tag, _ in found.tags} & {"script", "b", "i"}
    assert "onclick" not in {key for _, attributes in found.tags for key in attributes}
    assert EVIL in found.captions
    assert found.row(EVIL)[1] == "2"
    markdown = to_markdown_page(runs)
    assert not re.search(r"<\w", markdown)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if EVIL in line}
    assert widths <= {8}


def test_markdown_has_the_tables_of_the_page(four: list[Run]) -> None:
    text = to_markdown_page(four)
    assert text.startswith("# MLECS, FedAvg on URFall, 2 clients: 4 runs\n")
    assert (
        "| algorithm | seeds | macro-F1: all | macro-F1: own | macro-F1: server | bytes: up | "
        "bytes: down |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| MLECS | 2 | 0.520 ± 0.028 | 0.620 ± 0.028 | 0.720 ± 0.028 | 1 kB | 3 kB |\n"
        "| FedAvg | 2 | **0.600 ± 0.000** | **0.700 ± 0.000** | **0.800 ± 0.000** | 1 kB | 3 kB |\n"
    ) in text
    assert "| FedAvg | +0.080 | [-0.174, +0.334] | 2 |" in text
    assert "Learning curves" not in text
    assert "svg" not in text


def test_the_title_counts_algorithms_and_not_their_variants(tmp_path: Path) -> None:
    places = [whole(tmp_path / f"{n}", max_rounds=n) for n in (1, 2)]
    runs = read_runs([*places, whole(tmp_path / "f", "FedAvg")])
    assert title(runs) == "MLECS, FedAvg (3 variants) on URFall, 2 clients: 3 runs"
    many = [whole(tmp_path / name, name) for name in ("ECLM", "CDCCA", "CoPLMs")]
    assert title(read_runs([*places, *many])).startswith("4 algorithms (5 variants) on ")


def test_what_a_row_changes_is_listed_whole(tmp_path: Path) -> None:
    codec = {"class_path": "x.DWC", "init_args": {"bits": 4, "fraction": 0.25}}
    for name, trainer in (("a", {}), ("b", {"codec": codec, "store": "disk", "precision": 16})):
        write_run(tmp_path / name, config=a_config(**trainer), summary=a_summary())
    text = to_html(read_runs([tmp_path / "a", tmp_path / "b"]))
    found = Page(text)
    label = "MLECS: codec DWC, precision 16"
    changed = {row[1]: row[2:] for row in found.rows if row[0] == label and len(row) == 4}
    assert changed == {  # where states are kept changes no result
        "trainer.precision": ["16", "not set"],
        "trainer.codec.class_path": ['"x.DWC"', "not set"],
        "trainer.codec.init_args.bits": ["4", "not set"],
        "trainer.codec.init_args.fraction": ["0.25", "not set"],
    }
    assert "<details><summary>Every key in which a row differs from MLECS</summary>" in text


def test_a_setting_has_a_short_name_and_its_values_are_folded_away(tmp_path: Path) -> None:
    shifts = [{"clients": ["kitchen"], "lose": ["depth"], "start": n} for n in range(4)]
    for name in ("a", "b", "c"):
        config = a_config()
        if name == "b":
            schedule = {"class_path": "x.Drift", "init_args": {"shifts": shifts}}
            config["data"]["init_args"]["schedule"] = schedule
        if name == "c":
            config["data"]["init_args"]["split"] = shifts
        write_run(tmp_path / name, config=config, summary=a_summary())
    runs = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [run.setting.partition(": ")[2] for run in runs] == [
        *("", "schedule Drift", "split (4 entries)")
    ]
    found = page(runs)
    assert found.row("data.init_args.split", 2)[1] == json.dumps(shifts)
    assert found.row("data.init_args.split")[1] == "not set"


COUNTS = [[3, 0, 1], [2, 4, 0]]


def test_confusion_matrices_are_summed_over_clients_and_seeds(tmp_path: Path) -> None:
    for seed in (1, 2):
        told = {"kitchen": COUNTS, "hall": [[1, 0, 0], [0, 0, 0]]}
        confusion = {"classes": ["up", "down"], "clients": told, "server": COUNTS}
        summary = a_summary(seed=seed, confusion=confusion)
        write_run(tmp_path / str(seed), config=a_config(seed=seed), summary=summary)
    found = page(read_runs([tmp_path / "1", tmp_path / "2"]))
    # 10 samples of "up", 8 of them right; 4 of "down" are taken for it.
    assert found.row("up") == ["up", "10", "0.667", "0.800", "0.727"]
    assert found.row("up", 2) == ["up", "8", "0", "2"]
    assert found.row("true class") == ["true class", "up", "down", "no class"]
    assert found.row("down", 3) == ["down", "4", "8", "0"]  # the server's


@pytest.mark.parametrize(
    "told",
    [
        {"classes": ["a"], "clients": {"kitchen": [[1]]}},
        {"classes": ["a"], "clients": {"kitchen": [[1, -1]]}},
        {"classes": ["a"], "clients": {}, "server": [[1, 0.5]]},
        {"classes": "a", "clients": {}},
    ],
)
def test_counts_of_another_form_are_refused(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(confusion=told))
    with pytest.raises(ReportError, match="'confusion': "):
        read_runs([folder])


def test_many_clients_are_quantiles_with_the_table_folded_away(tmp_path: Path) -> None:
    summary = a_summary()
    summary["clients"] = {
        f"c{k}": {"modalities": ["acc"], "own": {"macro_f1": 0.5}, "all": {"macro_f1": k / 100}}
        for k in range(41)
    }
    text = to_html(read_runs([write_run(tmp_path / "v", config=a_config(), summary=summary)]))
    found = Page(text)
    assert found.row("upper quartile") == ["upper quartile", "0.300", "0.500"]
    assert found.row("c40") == ["c40", "●", "0.400", "0.500"]
    assert "<summary>The 41 clients</summary>" in text


def test_charts_have_alternative_texts_and_regions_names_of_their_own(four: list[Run]) -> None:
    found = page(four)
    told = [a["aria-label"] or "" for tag, a in found.tags if a.get("role") == "img"]
    assert len(told) == sum(tag == "figure" for tag, _ in found.tags)
    curve = "Chart, Learning curves: macro-F1, mean of the clients; MLECS: from 0.52 at 1 to 0.52"
    assert any(each.startswith(curve) and "FedAvg: from 0.6 at 1" in each for each in told)
    regions = [a["aria-label"] for _, a in found.tags if a.get("role") == "region"]
    assert len(set(regions)) == len(regions) > 3


def test_the_page_says_what_pocket_models_have_seen(tmp_path: Path) -> None:
    """Once for an algorithm, however many seeds; nothing where no summary says it."""
    seen = {
        "pocket/llm": {"kind": "key words", "samples": "other", "sentences": 1234},
        "pocket/slm": {
            "kind": "copying",
            "samples": "public",
            "sentences": 7,
            "modalities": ["heard", "said"],
        },
    }
    for seed in (1, 2):
        write_run(
            tmp_path / str(seed),
            config=a_config(seed=seed),
            summary=a_summary(seed=seed, pretraining=seen),
            history=a_history(),
        )
    page = Page(to_html(read_runs([tmp_path / str(seed) for seed in (1, 2)])))
    assert "Pocket models" in page.titles
    assert [row[1:] for row in page.rows if row[1:2] in (["pocket/llm"], ["pocket/slm"])] == [
        ["pocket/llm", "words of public targets, in alphabetical order", "1,234"],
        ["pocket/slm", "to copy, from targets and heard, said of public samples", "7"],
    ]
    assert "Pocket models" not in to_html(read_runs([whole(tmp_path / "silent")]))


def test_exact_match_is_in_the_results_where_it_is_the_only_score(tmp_path: Path) -> None:
    only = {"exact_match": 0.375}
    summary = a_summary() | {"mean": {"own": only, "all": only}, "server": only}
    summary["constant"] = {"own": only, "all": only, "server": only}
    for client in summary["clients"].values():
        client |= {"own": only, "all": only}
    run = write_run(tmp_path / "version_0", config=a_config(), summary=summary)
    page = to_markdown_page(read_runs([run]))
    assert "exact match" in page
    assert "0.375" in page
