import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlecs_lightning.data import HubDataset, Manifest
from mlecs_lightning.data.hub import _file
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.types import ClientProfile

hf = pytest.importorskip("datasets")
Build = Callable[..., HubDataset]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def call(**values: Any) -> HubDataset:
        return HubDataset(str(tmp_path / "set"), cache_dir=tmp_path / "cache", **values)

    return call


def test_parquet_columns_become_modalities_targets_and_owners(build: Build, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    features = hf.Features(
        {
            "tilt": hf.List(hf.Value("float32"), length=2),
            "heat": hf.Value("float32"),
            "said": hf.Value("string"),
            "mood": hf.ClassLabel(names=["calm", "loud"]),
            "room": hf.Value("string"),
        }
    )
    for split, count in (("train", 20), ("test", 4)):
        columns = {
            "tilt": [[float(n), -float(n)] for n in range(count)],
            "heat": [None if n == 3 else float(n) for n in range(count)],
            "said": [f"it is {n}" for n in range(count)],
            "mood": [n // 2 % 2 for n in range(count)],
            "room": [("hall", "attic")[n % 2] for n in range(count)],
        }
        table = hf.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    data = build(
        modalities={
            "tilt": {"standardise": False},
            "warmth": {"column": "heat", "standardise": False},
            "said": {"shape": [16]},
        },
        columns={"target": "mood", "domain": "room"},
        labels="class_names",
    )
    assert data.classes == ("calm", "loud")
    assert [data.read_label(text) for text in ("a Loud one", "calm", "?")] == [1, 0, None]
    kinds = {name: (spec.kind, spec.shape) for name, spec in data.modalities.items()}
    assert kinds == {
        "tilt": ("vector", (2,)),
        "warmth": ("vector", (1,)),
        "said": ("text", (16,)),
    }
    data.attach({"a": ClientProfile(("tilt",), ("hall",)), "b": ClientProfile(("warmth",))})
    pools = data.pools
    assert [len(pool) for pool in pools] == [5, 15, 4], "a quarter of train is public"
    for pool in pools:
        for row, sample in enumerate(pool.ids):
            number = int(sample.split("-")[1])
            assert pool.inputs["tilt"][row].tolist() == [number, -number]
            assert pool.labels[row] == number // 2 % 2
            assert pool.targets[row] == ("calm", "loud")[number // 2 % 2]
            assert pool.domains[row] == ("hall", "attic")[number % 2]
            is_there = number != 3
            assert bool(pool.present[row, 1]) == is_there
    assert {*data.private("a").domains} == {"hall"}


def test_folders_of_images_are_classes_and_read_as_a_manifest_reads_them(
    build: Build, tmp_path: Path
) -> None:
    lines = []
    for split in ("train", "test"):
        for n in range(8):
            name = ("cat", "dog")[n % 2]
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{n}.png"
            Image.fromarray(np.full((6, 6, 3), 10 * n, np.uint8)).save(file)
            place = "public" if split == "train" and n < 4 else split
            photo = str(file.relative_to(tmp_path))
            lines.append({"id": f"{split}{n}", "split": place, "modalities": {"photo": photo}})
            lines[-1]["target"] = name
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    form = {"shape": [3, 4, 4], "standardise": False}
    data = build(
        modalities={"photo": {"column": "image", **form}},
        columns={"target": "label"},
        split={"public": 0.5},
    )
    reference = Manifest(
        tmp_path / "m.jsonl", {"photo": {"kind": "image", **form}}, cache_dir=tmp_path / "cache"
    )
    assert data.modalities["photo"].kind == "image"
    assert [len(pool) for pool in data.pools] == [4, 4, 8]

    def pixels(module: Manifest) -> set[tuple[float, str]]:
        pools = module.pools
        values = [v for p in pools[:2] for v in p.inputs["photo"].mean((1, 2, 3)).tolist()]
        return set(zip(values, [t for p in pools[:2] for t in p.targets], strict=True))

    assert pixels(data) == pixels(reference)
    assert len(pixels(data)) == 8


def test_folder_of_sounds_needs_no_codec(build: Build, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = ["file_name,transcription,speaker"]
    for n in range(8):
        with wave.open(str(tmp_path / "set" / f"{n}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.full(50, 1000 * n, np.int16).tobytes())
        rows.append(f"{n}.wav,word {n},s{n % 2}")
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(rows) + "\n")
    data = build(
        modalities={"audio": {"shape": [1, 50], "standardise": False}},
        columns={"target": "transcription", "group": "speaker"},
        split={"public": ["s0"]},
    )
    public, private, _ = data.pools
    assert {*public.groups} == {"s0"}
    assert {*private.targets} == {"word 1", "word 3", "word 5", "word 7"}
    heights = [1000 * int(target.split()[1]) / 2**15 for target in private.targets]
    torch.testing.assert_close(private.inputs["audio"][:, 0, 0], torch.tensor(heights))
    with pytest.raises(ImportError, match="torchcodec"):  # the library is as it was
        hf.Audio().encode_example("0.wav")


def test_a_path_in_a_table_cannot_leave_the_data_set(build: Build, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "secret.png")
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 4
    features = hf.Features({"photo": hf.Image(decode=False), "said": hf.Value("string")})
    table = hf.Dataset.from_dict({"photo": cells, "said": ["a"] * 4}, features=features)
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    options: dict[str, Any] = {
        "modalities": {"photo": {"kind": "image", "shape": [3, 4, 4]}},
        "columns": {"target": "said"},
    }
    if table[0]["photo"]["bytes"] is not None:
        pytest.skip("this release embeds the files that it writes")
    with pytest.raises(ConfigurationError, match="lies outside of the data set"):
        _ = build(**options).pools


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": {"answer": "said"}}, r"unknown keys \['answer'\]"),
        ({"columns": {"group": "said"}}, "name the column of the target"),
        ({"columns": {"target": "none"}}, r"has no columns \['none'\], only \['tilt', 'said'\]"),
        ({"modalities": {"lean": {}}}, r"modalities.lean: there is no column 'lean'"),
        ({"labels": "class_names"}, r"labels: class_names needs .* but 'said' is of type Value"),
        ({"splits": {"dev": "public"}}, r"has the splits \['train'\], not \['dev'\]"),
    ],
)
def test_what_does_not_fit_the_table_is_named(
    build: Build, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    (tmp_path / "set").mkdir()
    rows = [{"tilt": [1.0, n], "said": "up"} for n in range(8)]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = {"modalities": {"tilt": {"shape": [2]}}, "columns": {"target": "said"}}
    with pytest.raises(ConfigurationError, match=message):
        _ = build(**{**common, **values}).pools


def test_a_class_that_readers_of_csv_take_for_an_empty_cell_is_told(
    build: Build, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    rows = [f"{n},{('fall', 'None')[n % 2]}" for n in range(20)]
    (tmp_path / "set" / "train.csv").write_text("\n".join(["heat,label", *rows]) + "\n")
    heat = {"kind": "vector", "shape": [1], "standardise": False}
    data = build(modalities={"heat": heat}, columns={"target": "label"})
    with pytest.warns(UserWarning, match="10 rows of .* have no target"):
        _ = data.pools


def test_paths_in_a_table_are_seen_from_the_root_that_is_given(
    build: Build, tmp_path: Path
) -> None:
    for name in ("set", "photos"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    rows = "".join(f"a.png,up {n}\n" for n in range(8))
    (tmp_path / "set" / "train.csv").write_text("photo,said\n" + rows)
    photo = {"kind": "image", "shape": [3, 4, 4], "standardise": False}
    data = build(modalities={"photo": photo}, columns={"target": "said"}, root=tmp_path / "photos")
    assert len(data.pools.private)


@pytest.mark.parametrize(("kind", "suffix"), [(b"WEBP", ".webp"), (b"WAVE", ".wav")])
def test_a_file_without_a_name_is_known_by_its_first_bytes(kind: bytes, suffix: str) -> None:
    table = [{"photo": {"bytes": b"RIFF\x1a\0\0\0" + kind, "path": None}}]
    assert _file(table, 0, "photo", [])[1] == suffix
