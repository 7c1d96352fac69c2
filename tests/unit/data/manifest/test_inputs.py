from pathlib import Path
from typing import Any

import numpy as np

from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.data.manifest.inputs import Inputs, decode_inputs
from mlecs_lightning.data.manifest.line import Line
from mlecs_lightning.data.manifest.store import DecodeCache

DECLARED = {"tilt": Declared("vector", [2]), "wave": Declared("series", [1, 3])}


def decoded(root: Path, *modalities: dict[str, Any]) -> Inputs:
    lines = [
        Line(f"m.jsonl:{i}", root, f"s{i}", "train", None, "", "", inputs, None, ("up .",))
        for i, inputs in enumerate(modalities, start=1)
    ]
    return decode_inputs(lines, DECLARED, DecodeCache(root / "cache"))


def test_what_a_line_lacks_is_absent_and_zero(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 2, 3, 4]]))
    inputs = decoded(tmp_path, {"tilt": [5, 6]}, {"wave": "x.npy"}, {"wave": [[7]], "tilt": [8, 9]})
    assert inputs.present.tolist() == [[True, False], [False, True], [True, True]]
    assert inputs.columns["tilt"].tolist() == [[5, 6], [0, 0], [8, 9]]
    assert inputs.columns["wave"].tolist() == [[[0, 0, 0]], [[2, 3, 4]], [[7, 7, 7]]]
    assert inputs.sources == {"tilt": {(2,): 2}, "wave": {(1, 4): 1, (1, 1): 1}}
    assert (inputs.unread, inputs.outside) == ([], [])


def test_what_cannot_be_read_is_named_by_line_id_and_modality(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1\n2,3")
    inputs = decoded(tmp_path, {"tilt": [5, 6], "wave": "x.csv"}, {"tilt": [1]}, {"wave": "y.csv"})
    assert inputs.unread == [
        "m.jsonl:1 (id 's1'), wave: 'x.csv' line 2: expected 1 fields as in the first row, got 2",
        "m.jsonl:2 (id 's2'), tilt has shape (1,), but kind 'vector' declares (2,)",
        "m.jsonl:3 (id 's3'), wave: 'y.csv' there is no such file",
    ]
    assert inputs.present.tolist() == [[True, False], [False, False], [False, False]]


def test_a_path_out_of_the_root_is_no_unreadable_file(tmp_path: Path) -> None:
    inputs = decoded(tmp_path, {"wave": "../x.csv"})
    assert inputs.unread == []
    assert inputs.outside == [
        "m.jsonl:1 (id 's1'), wave: '../x.csv' contains '..': all files must be below "
        "data.init_args.root"
    ]
