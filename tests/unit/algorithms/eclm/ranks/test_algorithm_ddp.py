"""The offline stages on two ranks train the cloud as one process does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(on_ranks: Callable[..., SimpleNamespace], cache_dir: Path) -> SimpleNamespace:
    return on_ranks(Path(__file__).with_name("eclm_ranks.py"))


def test_weights_are_those_of_one_process(trained: SimpleNamespace) -> None:
    for name, expected in trained.alone["weights"].items():
        first, second = (each["weights"][name] for each in trained.ranks)
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-6, msg=name)
    assert {"eclm.selector.layers.1.weight", "eclm.held"} <= trained.alone["weights"].keys()


def test_losses_are_those_of_the_global_batch(trained: SimpleNamespace) -> None:
    for step, expected in enumerate(trained.alone["losses"]):
        for name, value in expected.items():
            mean = sum(each["losses"][step][name] for each in trained.ranks) / 2
            assert float(mean) == pytest.approx(float(value), rel=1e-5), (step, name)
        # The balance, and in the second stage the divergence, are those of all samples.
        name = "balance" if step < 2 else "gates"
        of_all = [float(each["losses"][step][name]) for each in trained.ranks]
        assert of_all[0] == of_all[1] == pytest.approx(float(expected[name]), rel=1e-5)
