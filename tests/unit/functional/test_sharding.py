from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning.functional import gather_rows, sum_over_ranks, world_size

KINDS = ("float32", "float64", "bfloat16", "int64", "bool", "cube")


@pytest.fixture(scope="module")
def seven(on_ranks: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """Seven rows, five of them on one rank and two on the other."""
    return on_ranks(Path(__file__).with_name("sharding_ranks.py"))


def test_both_processes_know_of_each_other(seven: SimpleNamespace) -> None:
    assert [each["size"] for each in seven.ranks] == [2, 2]
    assert seven.alone["size"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_gets_the_rows_of_all(seven: SimpleNamespace, kind: str) -> None:
    for each in seven.ranks:
        gathered, whole = each["kinds"][kind], each["whole"][kind]
        assert gathered.dtype == whole.dtype
        assert torch.equal(gathered, whole)


def test_a_rank_may_have_no_row(seven: SimpleNamespace) -> None:
    for each in seven.ranks:
        assert torch.equal(each["nothing"], each["whole"]["float32"])


def test_loss_is_the_same_bits_on_all_ranks(seven: SimpleNamespace) -> None:
    first, second = (each["gradients"]["loss"] for each in seven.ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, seven.alone["gradients"]["loss"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", ["before", "behind"])
def test_mean_of_the_ranks_gradients_is_that_of_one_process(
    seven: SimpleNamespace, weight: str
) -> None:
    mean = torch.stack([each["gradients"][weight] for each in seven.ranks]).mean(dim=0)
    torch.testing.assert_close(mean, seven.alone["gradients"][weight], rtol=1e-5, atol=1e-7)


def test_weights_behind_the_gathered_rows_have_one_gradient(seven: SimpleNamespace) -> None:
    first, second = (each["gradients"]["behind"] for each in seven.ranks)
    assert torch.equal(first, second)


def test_sum_is_over_ranks_and_leaves_its_argument_alone(seven: SimpleNamespace) -> None:
    for each in seven.ranks:
        assert each["sum"].tolist() == [3, 30]
        assert each["counted"].tolist() == [1, 10]
        assert not each["detached"]


def test_one_process_alone_gets_its_own_tensor_back() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    assert gather_rows(x) is x
    assert torch.equal(sum_over_ranks(x), x)
    assert not sum_over_ranks(x).requires_grad
    assert world_size() == 1
