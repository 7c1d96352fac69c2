from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlecs_lightning.data.manifest_inputs import Inputs, decode_inputs, standardised
from mlecs_lightning.data.manifest_lines import Line
from mlecs_lightning.data.manifest_shapes import Declared
from mlecs_lightning.data.manifest_store import DecodeCache

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
    (tmp_path / "x.csv").write_text("1,2\n3")
    inputs = decoded(tmp_path, {"tilt": [5, 6], "wave": "x.csv"}, {"tilt": [1]}, {"wave": "y.csv"})
    assert inputs.unread == [
        "m.jsonl:1 (id 's1'), wave: 'x.csv' line 2: expected 2 fields, got 1",
        "m.jsonl:2 (id 's2'), tilt has shape (1,); kind 'vector' declares (2,)",
        "m.jsonl:3 (id 's3'), wave: 'y.csv' there is no such file",
    ]
    assert inputs.present.tolist() == [[True, False], [False, False], [False, False]]


def test_a_path_out_of_the_root_is_no_unreadable_file(tmp_path: Path) -> None:
    inputs = decoded(tmp_path, {"wave": "../x.csv"})
    assert inputs.unread == []
    assert inputs.outside == [
        "m.jsonl:1 (id 's1'), wave: '../x.csv' has a '..': files lie below data.init_args.root"
    ]


# Standardisation ----------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_the_public_samples() -> None:
    column = torch.randn(60, 3, 20) * torch.tensor([1.0, 5.0, 2.0]).view(1, 3, 1) + 7
    public = torch.arange(60) < 20
    present = torch.ones(60, dtype=torch.bool)
    found = standardised(column, present, public)
    torch.testing.assert_close(found[:20].mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:20].std((0, 2), correction=0), torch.ones(3))
    moved = column.clone()
    moved[20:] += 100  # private values change nothing for others
    assert torch.equal(standardised(moved, present, public)[:20], found[:20])


def test_absent_samples_stay_zero_and_do_not_count() -> None:
    column = torch.tensor([[1.0], [3.0], [0.0], [0.0]])
    present = torch.tensor([True, True, False, False])
    public = torch.tensor([True, True, False, False])
    assert standardised(column, present, public).tolist() == [[-1], [1], [0], [0]]


def test_a_channel_that_hardly_varies_keeps_a_tenth_of_the_mean_deviation() -> None:
    column = torch.tensor([[-1.0, 5.0], [1.0, 5.0], [0.0, 6.0]])
    public = torch.tensor([True, True, False])
    found = standardised(column, torch.ones(3, dtype=torch.bool), public)
    # Deviations 1 and 0, their mean 0.5: one unit off is 20, not infinitely many, deviations.
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 20.0]]))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_a_modality_that_never_varies_is_only_moved_to_zero(shape: tuple[int, ...]) -> None:
    everyone = torch.ones(4, dtype=torch.bool)
    column = torch.full((4, *shape), 9.0)
    assert not standardised(column, everyone, everyone).any()
