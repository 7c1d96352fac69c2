import copy
import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mlecs_lightning.report import print_summary, print_validation

SCORES = ("accuracy", "macro_f1", "rouge_lsum", "bertscore")
NAMES = ("kitchen", "upstairs_bathroom_02", "client_00", "[red]attic[/red]")


def row(value: float) -> dict[str, float]:
    return {name: value + 0.001 * n for n, name in enumerate(SCORES)}


def summary() -> dict[str, Any]:
    modalities = [["acc"], ["acc", "depth", "rgb"], ["depth"], ["rgb"]]
    return {
        "algorithm": "MLECS",
        "seed": 7,
        "rounds": 5,
        "clients": {
            name: {"modalities": has, "own": row(0.1 * n), "all": row(0.5 + 0.1 * n)}
            for n, (name, has) in enumerate(zip(NAMES, modalities, strict=True))
        },
        "mean": {"own": row(0.15), "all": row(0.65)},
        "server": row(0.912),
        "constant": {"own": row(0.222), "all": row(0.333), "server": row(0.444)},
        "faults": {"dropout": 0, "crash": 0, "refused": 0, "events": []},
        "communication": {
            "uplink_bytes": 60_448,
            "downlink_bytes": 1_234_567,
            "ratio_of_edge_parameters": {"uplink": 0.0065, "downlink": 0.1},
            "ratio_of_server_parameters": {"uplink": 0.0012, "downlink": 0.02},
            "edge_parameter_bytes": {"kitchen": 1_500_000, "client_00": 2_500_000},
            "server_parameter_bytes": 12_000_000_000,
            "by_component": {
                "uplink": {"adapter": 55_296, "header": 5_152},
                "downlink": {"adapter": 55_296, "fused": 1_173_175, "header": 6_096},
            },
        },
        "seconds": 12.34,
    }


def printed(content: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_summary(content, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def find(lines: list[str], start: str) -> str:
    (line,) = (line for line in lines if line.lstrip("│┃ ").startswith(start))
    return line


def without_bertscore() -> dict[str, Any]:
    content = summary()
    rows = [content["server"], content["constant"]["server"]]
    for views in (*content["clients"].values(), content["mean"], content["constant"]):
        rows += [views["own"], views["all"]]
    for scores in rows:
        del scores["bertscore"]
    return content


def test_every_party_is_named_in_full_in_eighty_columns() -> None:
    lines = printed(without_bertscore())
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    for name in (*NAMES, "acc depth rgb", "mean of clients", "server"):
        find(lines, name)
    assert sum("constant sentence" in line for line in lines) == 2


def test_with_more_scores_names_are_folded_and_nothing_is_cut() -> None:
    lines = printed(summary())
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    column = "".join(line[1:].split("│")[0].strip() for line in lines if line.startswith("│"))
    for name in (*NAMES, "accdepthrgb", "meanofclients", "server"):
        assert name in column.replace(" ", "")
    assert column.replace(" ", "").count("constantsentence") == 2


def test_scores_on_all_domains_stand_before_those_on_the_own() -> None:
    lines = printed(summary(), width=120)
    for start, numbers in {
        "kitchen": ("0.500 (0.000)", "0.501 (0.001)", "0.502 (0.002)", "0.503 (0.003)"),
        "mean of clients": ("0.650 (0.150)", "0.651 (0.151)", "0.652 (0.152)", "0.653 (0.153)"),
        "server": ("0.912", "0.913", "0.914", "0.915"),
    }.items():
        cells = " ".join(find(lines, start).split())
        places = [cells.find(number) for number in numbers]
        assert -1 not in places
        assert places == sorted(places)


def test_constant_rows_stand_below_clients_and_server() -> None:
    lines = printed(summary())
    clients, server = (
        " ".join(line.split()) for line in lines if "0.333" in line or "0.444" in line
    )
    assert "0.333 (0.222)" in clients
    assert "0.444" in server
    order = [n for n, line in enumerate(lines) if "0.650" in line or "0.333" in line]
    order += [n for n, line in enumerate(lines) if "0.912" in line or "0.444" in line]
    assert order == sorted(order)
    assert len(order) == 4


def test_bytes_and_ratios_are_told_with_their_denominators() -> None:
    lines = printed(summary())
    text = " ".join(" ".join(lines).split())
    for piece in ("60.4 kB", "1.23 MB", "0.65%", "10.00%", "0.12%", "2.00%"):
        assert piece in text
    assert "1.5 MB to 2.5 MB" in text
    assert "12 GB" in text
    assert "adapter 55.3 kB" in text
    assert "fused 1.17 MB" in text
    assert "12.3 s" in text


def test_one_size_of_client_is_told_once() -> None:
    content = summary()
    content["communication"]["edge_parameter_bytes"] = {"a": 999, "b": 999}
    assert "its model (999 B)" in " ".join(printed(content))


def test_a_run_that_sends_nothing_says_so() -> None:
    content = summary()
    content["communication"] |= {"uplink_bytes": 0, "downlink_bytes": 0}
    lines = printed(content)
    find(lines, "communication: none")
    assert not any("uplink" in line for line in lines)


def test_faults_are_told_by_kind_and_only_if_there_are_any() -> None:
    content = summary()
    assert not any("faults" in line for line in printed(content))
    content["faults"] |= {"dropout": 3, "refused": 1}
    assert find(printed(content), "faults") == (
        "faults of clients: 3 dropout, 1 refused (reasons: clients/NAME/errors.log)"
    )


@pytest.mark.parametrize("view", ["own", "all"])
def test_where_there_is_nothing_to_score_there_is_no_number(view: str) -> None:
    content = copy.deepcopy(summary())
    content["clients"]["kitchen"][view] = {}
    cells = " ".join(find(printed(content), "kitchen").split())
    assert ("0.500 (n/a)" if view == "own" else "n/a (0.000)") in cells


@pytest.mark.parametrize("party", ["clients", "server", "everybody"])
def test_targets_without_a_word_have_no_score(party: str) -> None:
    content = without_bertscore()
    rows = [content["server"]] if party in ("server", "everybody") else []
    if party in ("clients", "everybody"):
        views = (content["mean"], content["constant"], *content["clients"].values())
        rows += [row for each in views for row in (each["own"], each["all"])]
    for each in rows:
        del each["rouge_lsum"]
    lines = printed(content)
    assert "Rouge-Lsum" in " ".join(lines)
    assert ("n/a (n/a)" in find(lines, "kitchen")) == (party != "server")
    assert ("n/a" in find(lines, "server")) == (party != "clients")
    assert "nan" not in " ".join(lines)


@pytest.mark.parametrize(("share", "told"), [(0.0, "0.0%"), (0.125, "12.5%"), (1.0, "100.0%")])
def test_what_bertscore_does_not_know_is_told(share: float, told: str) -> None:
    line = find(printed(summary() | {"bertscore_unknown": share}, width=120), "BERTScore: its")
    assert (
        line == f"BERTScore: its tokenizer does not know {told} of the tokens of the test targets"
    )


def test_free_text_without_classes_has_no_accuracy() -> None:
    content = summary()
    for views in (*content["clients"].values(), content["mean"], content["constant"]):
        for view in ("own", "all"):
            views[view] = {"rouge_lsum": 0.25}
    content["server"] = content["constant"]["server"] = {"rouge_lsum": 0.75}
    text = " ".join(printed(content))
    assert "Rouge-Lsum" in text
    assert "accuracy" not in text
    assert "BERTScore" not in text


def test_a_real_run_prints_its_numbers(mlecs_run: SimpleNamespace) -> None:
    lines = printed(mlecs_run.summary)
    wire = mlecs_run.summary["communication"]
    assert f"{wire['uplink_bytes'] / 1000:.3g} kB" in find(lines, "uplink")
    score = mlecs_run.summary["clients"]["hall"]
    expected = f"{score['all']['rouge_lsum']:.3f} ({score['own']['rouge_lsum']:.3f})"
    assert expected in find(lines, "hall")
    assert max(map(len, lines)) <= 80


def test_a_stream_has_a_table_of_its_own_by_the_score_that_there_is() -> None:
    content = without_bertscore()
    scores = {"present": 0.8125, "final": 0.7, "forgetting": 0.25, "backward_transfer": -0.125}
    phases = [[0, "bold"], [2, "light"], [4, "bold"]]
    content["stream"] = {
        "clients": {"kitchen": {"phases": phases, "macro_f1": scores, "accuracy": {"final": 9.0}}},
        "mean": {"accuracy": {"final": 9.0}, "macro_f1": scores},
    }
    lines = printed(content)
    (title,) = (line for line in lines if "stream of domains" in line)
    assert title.strip() == "stream of domains: macro-F1"
    after = lines[lines.index(title) :]
    for start in ("kitchen", "mean of clients"):
        assert find(after, start).split("│")[2:6] == [
            *("   0.812 ", " 0.700 ", "      0.250 ", "            -0.125 ")
        ]
    assert any("bold light" in line and "bold light bold" not in line for line in after)
    assert not any("9.000" in line for line in lines)
    assert not any("stream of domains" in line for line in printed(without_bertscore()))


def test_what_a_codec_leaves_out_is_told() -> None:
    content = summary()
    content["communication"] |= {
        "codec": {"class_path": "DWC", "bits": 4},
        "reconstruction_error": {"uplink": [0.5, 0.25], "downlink": []},
    }
    (line,) = (line for line in printed(content, width=120) if line.startswith("codec"))
    assert line == "codec DWC: of an update is left out for the next, mean of rounds: uplink 0.38"


def many(count: int) -> dict[str, Any]:
    """A summary in which client k has k thousandths everywhere, in an order of names alone."""
    content = without_bertscore()
    del content["server"]["accuracy"]
    names = sorted(range(count), key=lambda k: str(k * 7919 % count))
    scores = {k: dict.fromkeys(("accuracy", "macro_f1", "rouge_lsum"), k / 1000) for k in names}
    content["clients"] = {
        f"c{k}": {"modalities": ["acc"], "own": scores[k], "all": scores[k]} for k in names
    }
    return content


def test_up_to_twenty_clients_have_a_row_each() -> None:
    lines = printed(many(20))
    assert len(re.findall(r"│ c\d+ ", "\n".join(lines))) == 20
    assert "median" not in " ".join(lines)


def test_of_many_clients_both_ends_and_quantiles_are_shown() -> None:
    content = many(201)
    content["clients"]["c7"]["all"] = {}  # its evaluation failed
    lines = printed(content)
    assert len(lines) < 60
    shown = re.findall(r"│ (c\d+) ", "\n".join(lines))
    lowest, highest = [f"c{k}" for k in range(5)], [f"c{k}" for k in range(196, 201)]
    assert shown == lowest + highest
    # Of the 200 that are left: 0..200 without 7, linear between the two in the middle.
    assert "0.101 (0.100)" in " ".join(find(lines, "median").split())
    assert "0.000 (0.000)" in " ".join(find(lines, "lowest").split())
    text = " ".join(" ".join(lines).split())
    assert "201 clients: the 5 lowest and 5 highest by macro-F1" in text
    assert "Without a score: 1" in text


def test_a_stream_of_many_clients_is_as_short() -> None:
    content = many(40)
    content["stream"] = {
        "clients": {
            name: {"phases": [[0, "bold"]], "macro_f1": {"present": client["all"]["macro_f1"]}}
            for name, client in content["clients"].items()
        },
        "mean": {"macro_f1": {"present": 0.5}},
    }
    lines = printed(content)
    (title,) = (n for n, line in enumerate(lines) if "stream of domains" in line)
    after = "\n".join(lines[title:])
    assert re.findall(r"│ (c\d+) ", after) == [f"c{k}" for k in (0, 1, 2, 3, 4, 35, 36, 37, 38, 39)]


def test_epsilon_is_told_with_whom_it_holds_against() -> None:
    assert not [line for line in printed(summary()) if line.startswith("privacy")]
    told = {"epsilon": 2.345, "epsilon_server": 40.5, "delta": 1e-5}
    line = find(printed(summary() | {"privacy": told}), "privacy")
    assert (
        line == "privacy: epsilon 2.35 against the models, 40.5 against the server at delta 1e-05"
    )


@pytest.mark.parametrize(("count", "rows"), [(2, 4), (40, 12)])
def test_a_validation_is_a_table_of_parties(count: int, rows: int) -> None:
    values = {f"clients/c{n}/val/loss": n / 100 for n in range(count)}
    values |= {"clients/c0/val/macro_f1": 0.5, "clients/val/loss": 0.25, "server/val/loss": 0.75}
    out = io.StringIO()
    print_validation(values, Console(file=out, width=100))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    assert len(lines) == rows
    assert [cell.strip() for cell in lines[-1].split("│")[1:-1]] == ["server", "0.750", "n/a"]
    assert "0.250" in next(line for line in lines if "mean of clients" in line)
    said = f"c{count - 1}"
    assert any(said in line for line in lines)
