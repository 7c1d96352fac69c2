from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlecs_lightning.data.table import SampleTable


@pytest.fixture
def table() -> SampleTable:
    """Four samples with a vector of 2 and a series of 3; sample 2 lacks the series."""
    n = 4
    return SampleTable(
        ids=tuple("abcd"),
        modalities=("vector", "series"),
        inputs={
            "vector": torch.arange(8.0).view(n, 2) + 1,
            "series": torch.arange(12.0).view(n, 1, 3) + 1,
        },
        present=torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool),
        instructions=tuple(f"ask {i}" for i in range(n)),
        targets=tuple(f"say {i}" for i in range(n)),
        labels=torch.arange(n) * 10,
        domains=("x", "x", "y", "y"),
        groups=("g", "g", "h", "i"),
    )


@pytest.mark.parametrize("rows", [[2, 0], np.array([2, 0]), (2, 0)])
def test_rows_come_in_the_order_asked_for_in_every_column(
    table: SampleTable, rows: Sequence[int]
) -> None:
    picked = table.select(rows)
    assert picked.ids == ("c", "a")
    assert picked.inputs["vector"].tolist() == [[5, 6], [1, 2]]
    assert picked.inputs["series"].tolist() == [[[7, 8, 9]], [[1, 2, 3]]]
    assert picked.present.tolist() == [[True, False], [True, True]]
    assert picked.instructions == ("ask 2", "ask 0")
    assert picked.targets == ("say 2", "say 0")
    assert picked.labels.tolist() == [20, 0]
    assert picked.domains == ("y", "x")
    assert picked.groups == ("h", "g")


def test_batch_is_the_selected_rows(table: SampleTable) -> None:
    batch, picked = table.__getitems__([3, 1, 1]), table.select([3, 1, 1])
    assert batch.ids == ("d", "b", "b")
    for name in ("ids", "modalities", "instructions", "targets"):
        assert getattr(batch, name) == getattr(picked, name)
    assert torch.equal(batch.present, picked.present)
    assert all(torch.equal(batch.inputs[m], picked.inputs[m]) for m in table.modalities)
    assert table[3].ids == ("d",)
    assert table[3].inputs["series"].shape == (1, 1, 3)


def test_selecting_nothing_gives_an_empty_table(table: SampleTable) -> None:
    empty = table.select([])
    assert len(empty) == 0
    assert empty.inputs["series"].shape == (0, 1, 3)
    assert empty.present.shape == (0, 2)


def test_restriction_keeps_the_order_of_the_table(table: SampleTable) -> None:
    assert table.restrict(["series", "vector"]).modalities == ("vector", "series")
    alone = table.restrict(["series"])
    assert tuple(alone.inputs) == alone.modalities == ("series",)
    assert alone.present.tolist() == [[True], [True], [False], [True]]


def test_restriction_to_an_unknown_modality_names_what_there_is(table: SampleTable) -> None:
    with pytest.raises(KeyError, match=r"\['sound'\], known: \('vector', 'series'\)"):
        table.restrict(["vector", "sound"])


def test_mask_adds_absences_and_zeroes_their_inputs(table: SampleTable) -> None:
    keep = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 1]], dtype=torch.bool)
    masked = table.mask(keep)
    # Sample 2 never had the series: a mask cannot give it one.
    assert masked.present.tolist() == [[True, False], [False, True], [True, False], [True, True]]
    assert masked.inputs["vector"].tolist() == [[1, 2], [0, 0], [5, 6], [7, 8]]
    assert masked.inputs["series"].sum(dim=(1, 2)).tolist() == [0, 15, 0, 33]
    assert table.inputs["vector"][1].tolist() == [3, 4], "the table itself must not change"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_mask_zeroes_readings_that_are_no_numbers(table: SampleTable, broken: float) -> None:
    table.inputs["series"][2] = broken
    masked = table.mask(torch.ones(4, 2, dtype=torch.bool))
    assert masked.inputs["series"][2].tolist() == [[0, 0, 0]]


def test_mask_keeps_the_type_of_integer_inputs(table: SampleTable) -> None:
    whole = {name: column.to(torch.uint8) for name, column in table.inputs.items()}
    masked = replace(table, inputs=whole).mask(torch.zeros(4, 2, dtype=torch.bool))
    assert [column.dtype for column in masked.inputs.values()] == [torch.uint8] * 2


def test_columns_of_other_lengths_are_named(table: SampleTable) -> None:
    with pytest.raises(
        ValueError, match=r"4 ids .* other lengths: \{'targets': 3, 'labels': 2, 'vector': 1\}"
    ):
        replace(
            table,
            targets=table.targets[:3],
            labels=table.labels[:2],
            inputs=table.inputs | {"vector": torch.zeros(1, 2)},
        )


def test_modalities_must_be_those_of_inputs_and_presence(table: SampleTable) -> None:
    with pytest.raises(ValueError, match=r"modalities \('series', 'vector'\) needs inputs"):
        replace(table, modalities=("series", "vector"))
    with pytest.raises(ValueError, match=r"present \(4, 1\)"):
        replace(table, present=table.present[:, :1])
