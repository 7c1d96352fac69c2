"""Mixed precision: what is computed in half of the bits, and what must not be."""

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms.mlecs import objectives
from mlecs_lightning.functional import VolumeContrast, volume_contrastive_loss

Fit = Callable[..., SimpleNamespace]
# 16-mixed is refused on a CPU.
HALF = {("cpu", "bf16-mixed"): torch.bfloat16, ("cuda", "16-mixed"): torch.float16}


@pytest.fixture(scope="module", params=HALF, ids="-".join)
def run(
    request: pytest.FixtureRequest, fit: Fit, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The small run in mixed precision, with all that the volume loss was given and returned."""
    accelerator, precision = request.param
    if accelerator == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    contrasts: list[SimpleNamespace] = []

    def spy(anchors: Tensor, vectors: Tensor, **options: Any) -> VolumeContrast:
        result = volume_contrastive_loss(anchors, vectors, **options)
        given = {k: v.detach() if isinstance(v, Tensor) else v for k, v in options.items()}
        contrasts.append(
            SimpleNamespace(
                anchors=anchors.detach(),
                vectors=vectors.detach(),
                options=given,
                result=VolumeContrast(*(value.detach() for value in result)),
                autocast=torch.is_autocast_enabled(vectors.device.type),
            )
        )
        return result

    options = ("--trainer.accelerator", accelerator, "--trainer.precision", precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "volume_contrastive_loss", spy)
        ran = fit(tmp_path_factory.mktemp(precision), *options)
    half = HALF[request.param]
    return SimpleNamespace(**vars(ran), half=half, options=options, contrasts=contrasts)


def rounds(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def tensors(state: object, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a nested state with its place."""
    if isinstance(state, Tensor):
        yield at, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{at}/{key}")


def test_losses_and_scores_are_finite(run: SimpleNamespace) -> None:
    for row in rounds(run.folder):
        assert [key for key, value in row.items() if not math.isfinite(value)] == []
    assert 0 <= run.summary["mean"]["all"]["rouge_lsum"] <= 1
    assert run.config["trainer"]["precision"] == run.options[-1]


def test_what_trains_and_its_optimizer_stay_in_single_precision(
    run: SimpleNamespace, fitted: SimpleNamespace
) -> None:
    state, exact = run.checkpoint(1), fitted.checkpoint(1)
    for part in ("server", "clients"):
        kinds = {place: tensor.dtype for place, tensor in tensors(state[part])}
        assert kinds == {place: tensor.dtype for place, tensor in tensors(exact[part])}
        assert {kind for kind in kinds.values() if kind.is_floating_point} == {torch.float32}
        assert sum("lora_" in place for place in kinds) > 10


def test_the_run_is_another_than_in_single_precision_but_near_it(
    run: SimpleNamespace, fitted: SimpleNamespace
) -> None:
    for one, other in zip(rounds(fitted.folder), rounds(run.folder), strict=True):
        losses = [key for key in one if key.endswith("/loss")]
        assert [key for key in losses if one[key] == other[key]] == []
    # Before the first step of a party all is the same but the arithmetic: 0.1 % off, with a spread
    # of 0.05 % over pocket weights.
    early = ["server/warmup/loss", "clients/kitchen/private/loss", "clients/hall/private/loss"]
    for key, round in zip(early, (0, 1, 1), strict=True):
        exact = rounds(fitted.folder)[round][key]
        assert rounds(run.folder)[round][key] == pytest.approx(exact, rel=0.01)


def test_adapters_travel_in_single_precision(run: SimpleNamespace, fitted: SimpleNamespace) -> None:
    parts = run.summary["communication"]["by_component"]
    exact = fitted.summary["communication"]["by_component"]
    for way, component in (("uplink", "adapter"), ("downlink", "adapter"), ("downlink", "fused")):
        assert parts[way][component] == exact[way][component]


def test_the_volume_loss_is_computed_in_single_precision(run: SimpleNamespace) -> None:
    """Inside autocast, over vectors that come out of it in half precision."""
    assert len(run.contrasts) == 12  # two rounds: CCL of two clients, four terms of SE-CCL
    assert all(contrast.autocast for contrast in run.contrasts)
    assert {contrast.vectors.dtype for contrast in run.contrasts} == {run.half}
    for contrast in run.contrasts:
        assert {value.dtype for value in contrast.result[:4]} == {torch.float32}
        exact = volume_contrastive_loss(
            contrast.anchors.double(), contrast.vectors.double(), **contrast.options
        )
        for name, value in exact._asdict().items():
            found = float(getattr(contrast.result, name))
            assert found == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_a_mixed_run_goes_on_to_the_same_bits(
    run: SimpleNamespace, fit: Fit, tmp_path: Path, differences: Callable[..., list[str]]
) -> None:
    """The scale of float16's gradients is part of the checkpoint."""
    assert ("scale" in run.checkpoint(1)["precision"]) == (run.half == torch.float16)
    if "cuda" in run.options:
        pytest.skip("a GPU sums in any order")
    fit(tmp_path, *run.options, "--trainer.max_rounds", 1)
    rest = fit(tmp_path, *run.options, "--ckpt_path", "last")
    unlike = differences(run.checkpoint(1), rest.checkpoint(1))
    assert {place for place in unlike if not place.startswith("/config/")} <= {"/seconds"}


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["fit", "warmup"])
def test_float16_on_a_cpu_is_refused(
    command: str,
    accelerator: str,
    mlecs: Callable[..., Any],
    tiny_yaml: Path,
    tmp_path: Path,
) -> None:
    """Lightning computes in bfloat16 then, and every record of the run would say float16."""
    if accelerator == "auto" and torch.accelerator.is_available():
        pytest.skip("auto takes the GPU")
    options = ("--trainer.accelerator", accelerator, "--trainer.precision", "16-mixed")
    ran = mlecs(
        command, "--config", tiny_yaml, "--trainer.default_root_dir", tmp_path / "runs", *options
    )
    assert ran.code != 0
    assert "trainer.precision is 16-mixed, which needs a GPU" in ran.err
    assert "bf16-mixed or 32-true" in ran.err
    assert not (tmp_path / "runs").exists()
