import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlecs_lightning.report.results.reading import ReportError, read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, whole, write_run


def test_a_real_run_is_read(mlecs_run: SimpleNamespace) -> None:
    (run,) = read_runs([mlecs_run.folder])
    assert run.finished
    assert (run.algorithm, run.seed, run.rounds) == ("MLECS", 0, 2)
    assert run.summary == json.loads(json.dumps(mlecs_run.summary))
    assert run.modalities["hall"] == ("fourier",)
    assert [at["step"] for at in run.history] == [1, 2]
    assert {"clients/hall/val/loss", "server/val/macro_f1", "aggregate/error"} <= set(
        run.history[0]
    )


def test_a_folder_of_versions_stands_for_all_of_them(tmp_path: Path) -> None:
    for k in (10, 2):
        whole(tmp_path / f"version_{k}", seed=k)
    (tmp_path / "version_11").mkdir()  # refused before it began
    for name in ("version_2_backup", "version_x", "version_3.old", "my_version_4"):
        whole(tmp_path / name, seed=99)
    assert [run.seed for run in read_runs([tmp_path])] == [2, 10]
    assert [run.seed for run in read_runs([tmp_path / "version_x"])] == [99], "by its own name"


def test_a_run_that_went_back_and_the_one_it_abandoned_are_two(tmp_path: Path) -> None:
    whole(tmp_path / "version_0", seed=1)
    aside = whole(tmp_path / "version_0" / "abandoned_0", seed=99)
    assert [run.seed for run in read_runs([tmp_path])] == [1]
    assert [run.seed for run in read_runs([aside])] == [99]


def test_a_run_is_read_once(tmp_path: Path) -> None:
    folder = whole(tmp_path / "version_0")
    assert len(read_runs([folder, tmp_path])) == 1


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    gone, empty, deep = tmp_path / "gone", tmp_path / "empty", tmp_path / "runs"
    empty.mkdir()
    whole(deep / "quick" / "version_0")
    broken = {
        "summary.json": '{"algorithm": ',
        "config.yaml": "a: [",
        "metrics.csv": "step,x\n1,many\n",
    }
    for name, text in broken.items():
        folder = whole(tmp_path / f"bad_{name}")
        (folder / name).write_text(text)
    for name, summary in {"list": [1], "clients": {"clients": [1]}}.items():
        folder = write_run(tmp_path / f"bad_{name}")
        (folder / "summary.json").write_text(json.dumps(summary))
    unstepped = write_run(tmp_path / "bad_step")
    (unstepped / "metrics.csv").write_text("x\n1\n")
    bad = sorted(tmp_path.glob("bad_*"))
    with pytest.raises(ReportError) as raised:
        read_runs([gone, empty, deep, *bad])
    faults = dict(line.split(": ", 1) for line in str(raised.value).splitlines())
    assert set(faults) == set(map(str, [gone, empty, deep, *bad]))
    assert "config.yaml, metrics.csv, summary.json" in faults[str(gone)]
    assert "neither metrics.csv nor summary.json" in faults[str(empty)]
    assert str(deep / "quick") in faults[str(deep)]
    for name in broken:
        assert name in faults[str(tmp_path / f"bad_{name}")]
    assert "line 2" in faults[str(tmp_path / "bad_metrics.csv")]
    assert "no object" in faults[str(tmp_path / "bad_list")]
    assert "'clients' is [1]" in faults[str(tmp_path / "bad_clients")]
    assert "'step'" in faults[str(unstepped)]


def test_a_run_without_summary_is_unfinished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "v", config=a_config(max_rounds=50), history=a_history(rounds=3))
    (run,) = read_runs([folder])
    assert not run.finished
    assert (run.algorithm, run.rounds, run.planned) == ("MLECS, unfinished", 3, 50)
    assert run.modalities == {"kitchen": ("acc", "depth"), "hall": ("rgb",)}


def test_the_summary_of_a_run_that_went_on_is_not_that_of_its_end(tmp_path: Path) -> None:
    rounds = {"went on": a_history(rounds=3), "about to": a_history(rounds=2)}
    for name, history in rounds.items():
        folder = write_run(
            tmp_path / name, config=a_config(max_rounds=5), summary=a_summary(), history=history
        )
        assert not read_runs([folder])[0].finished


def test_a_run_that_a_callback_ended_has_ended_until_it_is_to_be_longer(tmp_path: Path) -> None:
    cases = {"ended": (5, 2, True), "longer": (9, 2, False), "went on": (5, 3, False)}
    for name, (planned, rounds, finished) in cases.items():
        folder = write_run(
            tmp_path / name,
            config=a_config(max_rounds=planned),
            summary=a_summary(planned=5),
            history=a_history(rounds),
        )
        (run,) = read_runs([folder])
        assert (run.finished, run.rounds, run.planned) == (finished, rounds, planned)


def test_a_fast_run_of_one_round_has_ended(tmp_path: Path) -> None:
    config, summary = a_config(max_rounds=5, fast_dev_run=True), a_summary(rounds=1)
    folder = write_run(tmp_path / "v", config=config, summary=summary, history=a_history(1))
    assert read_runs([folder])[0].finished


def test_a_run_without_configuration_or_log_is_read(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "v", summary=a_summary())])
    assert (run.setting, run.algorithm) == ("unknown data, 2 clients", "MLECS")
    assert run.history == ()


def test_values_that_are_no_numbers_are_left_out_of_the_history(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "v", summary=a_summary(), history=a_history(1))
    (folder / "metrics.csv").write_text("step,a,b,c\n0,1,1,1\n1,nan,,0.5\n")
    assert read_runs([folder])[0].history == ({"step": 1.0, "c": 0.5},)


# Labels


def test_seed_name_and_place_make_no_other_algorithm(tmp_path: Path) -> None:
    places = [
        whole(tmp_path / "a", seed=1),
        whole(tmp_path / "b", seed=2, devices=4, default_root_dir="elsewhere", save_top_k=1),
        whole(tmp_path / "c", "FedAvg"),
    ]
    runs = read_runs(places)
    assert [run.algorithm for run in runs] == ["MLECS", "MLECS", "FedAvg"]
    assert {run.setting for run in runs} == {"URFall, 2 clients"}


def test_what_differs_from_the_first_is_told_and_what_is_on_comes_first(tmp_path: Path) -> None:
    faults = {"straggler_rate": 0.0, "dropout_rate": 0.3, "crash_rate": 0.1}
    places = [
        whole(tmp_path / "a"),
        whole(tmp_path / "b", precision="bf16-mixed"),
        whole(tmp_path / "c", faults=faults),
        whole(tmp_path / "d", faults={**faults, "crash_rate": 0.1, "seed": 9, "slowdown": 2.0}),
    ]
    labels = [run.algorithm for run in read_runs(places)]
    assert labels == [
        "MLECS",
        'MLECS: precision "bf16-mixed"',
        "MLECS: dropout_rate 0.3, crash_rate 0.1, ...",
        "MLECS: dropout_rate 0.3, crash_rate 0.1, ... #2",
    ]


def test_other_clients_are_another_setting_of_the_same_algorithm(tmp_path: Path) -> None:
    other = a_config() | {"clients": {"count": 8, "modality_rate": 0.5}}
    third = a_config()
    third["clients"]["hall"] = {"modalities": ["rgb", "acc"]}
    places = [whole(tmp_path / "a")]
    for name, config in (("b", other), ("c", third)):
        places.append(write_run(tmp_path / name, config=config, history=a_history()))
    runs = read_runs(places)
    assert [run.setting for run in runs] == [
        "URFall, 2 clients",
        "URFall, 8 clients",
        'URFall, 2 clients: modalities ["rgb", "acc"]',
    ]
    assert {run.algorithm for run in runs} == {"MLECS", "MLECS, unfinished"}


def test_lines_keep_their_labels(tmp_path: Path) -> None:
    line = {"algorithm": "MLECS without ccl", "setting": "five", "seed": 7, "rounds": 2}
    line |= {"seconds": 3.5, "commit": "abc", "summary": a_summary()}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (run,) = read_runs([path])
    assert (run.algorithm, run.setting, run.seed, run.commit) == (
        "MLECS without ccl",
        "five",
        7,
        "abc",
    )
    assert run.place == str(path)
    path.write_text(json.dumps(line | {"summary": {"mean": 3}}))
    with pytest.raises(ReportError, match=r"m\.jsonl:1: 'summary': 'mean' is 3"):
        read_runs([path])
