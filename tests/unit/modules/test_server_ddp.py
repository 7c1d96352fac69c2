"""A global batch of seven on two ranks trains the server as one process does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

OBJECTIVES = ("language", "both towers", "se_ccl", "se_ccl, lacking", "se_ccl of ids", "mutual")


@pytest.fixture(scope="module")
def trained(on_ranks: Callable[..., SimpleNamespace], cache_dir: Path) -> SimpleNamespace:
    """Three steps of each objective on two ranks and on one: read it, do not change it."""
    return on_ranks(Path(__file__).with_name("server_ranks.py"))


def runs(trained: SimpleNamespace, objective: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return trained.alone["runs"][objective], [each["runs"][objective] for each in trained.ranks]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_one_process(trained: SimpleNamespace, objective: str) -> None:
    alone, ranks = runs(trained, objective)
    for each in ranks:
        assert each["gradients"].keys() == alone["gradients"].keys()
        for name, expected in alone["gradients"].items():
            if expected is None:
                assert each["gradients"][name] is None, name
            else:
                torch.testing.assert_close(
                    each["gradients"][name], expected, rtol=1e-4, atol=1e-6, msg=name
                )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_after_three_steps_are_those_of_one_process(
    trained: SimpleNamespace, objective: str
) -> None:
    alone, ranks = runs(trained, objective)
    for name, expected in alone["weights"].items():
        first, second = (each["weights"][name] for each in ranks)
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reported_losses_are_those_of_one_process(trained: SimpleNamespace, objective: str) -> None:
    alone, ranks = runs(trained, objective)
    for step, expected in enumerate(alone["losses"]):
        for name, value in expected.items():
            mean = sum(each["losses"][step][name] for each in ranks) / len(ranks)
            assert float(mean) == pytest.approx(float(value), rel=1e-5, abs=1e-6), (step, name)


def test_ranks_differ_in_tokens_and_in_what_they_lack(trained: SimpleNamespace) -> None:
    """What makes the tests above mean something."""
    one, two = (each["seen"] for each in trained.ranks)
    assert (one["samples"], two["samples"]) == ([4, 4, 4], [3, 3, 3])
    for first, second in zip(one["tokens"], two["tokens"], strict=True):
        assert first / 4 != second / 3
    assert all(one["fourier"])
    assert not any(two["fourier"])


def test_what_an_objective_does_not_use_stays_without_gradient(trained: SimpleNamespace) -> None:
    unused = {n for n, g in trained.ranks[0]["runs"]["language"]["gradients"].items() if g is None}
    slm = {n for n in trained.ranks[0]["runs"]["language"]["gradients"] if ".slm." in n}
    readout = {f"towers.llm.readout.{kind}" for kind in ("weight", "bias")}
    assert unused == slm | readout


def test_ranks_never_tell_each_other_frozen_weights(trained: SimpleNamespace) -> None:
    first, second = (each["frozen"] for each in trained.ranks)
    assert torch.equal(first["after"]["frozen"], first["before"]["frozen"])
    assert torch.equal(second["after"]["frozen"], first["before"]["frozen"] + 1.0)
    # Rank 1 had changed a weight that trains, too: it got that of rank 0.
    for each in (first, second):
        assert torch.equal(each["begun"]["trained"], first["before"]["trained"])
    assert torch.equal(first["after"]["trained"], second["after"]["trained"])


def test_one_rank_may_evaluate_alone(trained: SimpleNamespace) -> None:
    values = trained.ranks[0]["evaluated"]
    # The ranks have one thread each, this process all there are: rounding differs.
    torch.testing.assert_close(values, trained.alone["evaluated"], rtol=1e-5, atol=1e-6)


def test_a_client_s_loss_is_its_own(trained: SimpleNamespace) -> None:
    torch.testing.assert_close(trained.ranks[0]["edge"], trained.alone["edge"])
