"""Modules of overlapping sub-models, merged by hand."""

import pytest
import torch

from mlecs_lightning.algorithms.eclm.merge import MergeWeights, ModuleMerger, weights_of


def test_overlapping_sub_models_by_hand() -> None:
    merger = ModuleMerger(4, 2)
    # Device one has modules 0 and 1, device two 1 and 3; importance times samples as weights.
    merger.add(
        torch.tensor([0, 1]),
        torch.tensor([[1.0, 2.0], [10.0, 20.0]]),
        torch.tensor([0.5, 0.2, 0.7, 0.7]) * 10,
        allowed=torch.ones(4).bool(),
    )
    merger.add(
        torch.tensor([1, 3]),
        torch.tensor([[40.0, 80.0], [-1.0, -2.0]]),
        torch.tensor([0.7, 0.1, 0.7, 0.9]) * 40,
        allowed=torch.ones(4).bool(),
    )
    merged = merger.result({})
    assert merged.index.tolist() == [0, 1, 3]
    # Module 1: (2 * 10 + 4 * 40) / 6 = 30, and twice that.
    torch.testing.assert_close(merged.rows, torch.tensor([[1.0, 2.0], [30.0, 60.0], [-1.0, -2.0]]))
    assert merged.contributors.tolist() == [1, 2, 0, 1]


def test_the_order_of_the_devices_does_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, 5, generator=generator)
    weights = torch.rand(7, 3, generator=generator)
    results = []
    for order in (range(7), reversed(range(7))):
        merger = ModuleMerger(3, 5)
        for j in order:
            merger.add(torch.arange(3), rows[j], weights[j], allowed=torch.ones(3).bool())
        results.append(merger.result({}).rows)
    assert torch.equal(*results)


def test_a_weight_of_zero_counts_as_nobody() -> None:
    merger = ModuleMerger(2, 1)
    weights, everything = torch.tensor([0.0, 1.0]), torch.ones(2).bool()
    rows = torch.tensor([[5.0], [6.0]])
    merger.add(torch.tensor([0, 1]), rows, weights, allowed=everything)
    merged = merger.result({})
    assert (merged.index.tolist(), merged.rows.tolist()) == ([1], [[6.0]])
    assert merged.contributors.tolist() == [0, 1]


def test_nobody_leaves_nothing() -> None:
    merged = ModuleMerger(2, 3).result({})
    assert (merged.clients, merged.index.tolist(), merged.rows.shape) == (0, [], (0, 3))


@pytest.mark.parametrize(
    ("index", "trained"),
    [([0, 99], [0]), ([-1, 0], [0]), ([0, 2], [0]), ([2, 3], []), ([0], []), ([1, 0], [0, 1])],
    ids=["beyond", "negative", "foreign", "nothing", "short", "sound"],
)
def test_modules_that_are_not_a_device_s_are_dropped(index: list[int], trained: list[int]) -> None:
    merger = ModuleMerger(4, 1)
    allowed = torch.tensor([True, True, False, False])
    rows = torch.tensor([[5.0], [6.0]])
    mask = merger.add(torch.tensor(index), rows, torch.ones(4), allowed=allowed)
    assert mask.nonzero().flatten().tolist() == trained
    merged = merger.result({})
    assert merged.index.tolist() == trained
    expected = {n: row for n, row in zip(index, [5.0, 6.0], strict=False) if n in trained}
    assert dict(zip(merged.index.tolist(), merged.rows.flatten().tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("importance_samples", [1.0, 3.0]), ("importance", [0.25, 0.75]), ("samples", [4.0, 4.0])],
)
def test_what_weighs(kind: MergeWeights, weights: list[float]) -> None:
    assert weights_of(kind, torch.tensor([[0.25, 0.75]]), 4).tolist() == [weights]
