from pathlib import Path

import pytest

from mlecs_lightning.data import Manifest
from mlecs_lightning.errors import ConfigurationError

MODALITIES = {"tilt": {"kind": "vector", "shape": [2]}}


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Manifest(
            [],
            {"my.cam": {"kind": "image", "shape": [3]}},
            instruction=" ",
            labels={"up": []},
            batch_size=0,
        )
    assert str(raised.value).splitlines() == [
        "data.init_args.batch_size must be at least 1, got 0",
        "data.init_args.modalities.my.cam: a modality of kind 'image' has 3 dimensions, "
        "got shape (3,)",
        "data.init_args.modalities: 'my.cam' cannot name a modality: expected letters, digits, "
        "'_', '-' and spaces, and one of the first three at the start; no points, since names of "
        "tensors have them",
        "data.init_args.instruction must not be blank, got ' '",
        "data.init_args.labels: class 'up' needs at least one phrase and no blank one: []",
        "data.init_args.file is empty: name at least one",
    ]
    with pytest.raises(ConfigurationError, match=r"dirichlet skews the labels, so it needs data\."):
        Manifest("m.jsonl", MODALITIES, partition="dirichlet")
    with pytest.raises(ConfigurationError, match="modalities is empty: name at least one"):
        Manifest("m.jsonl", {})


def test_a_root_that_is_no_folder_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.touch()
    with pytest.raises(
        FileNotFoundError, match=r"data\.init_args\.root: there is no folder '.*no'"
    ):
        _ = Manifest(file, MODALITIES, root=tmp_path / "no").pools
