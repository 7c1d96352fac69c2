import warnings
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

Build = Callable[..., ModelSettings]
Specs = Mapping[str, ModalitySpec]
Trainers = Callable[..., L.Trainer]


@pytest.fixture
def edge(settings_of: Build, modalities: Specs) -> EdgeModule:
    torch.manual_seed(0)
    return EdgeModule(settings_of(), modalities)


@pytest.fixture
def still(settings_of: Build, modalities: Specs) -> Callable[[], EdgeModule]:
    """Builds one and the same edge, in whose passes nothing is drawn.

    Its modalities are vectors, whose extractor has no dropout. SGD: Adam takes steps of full size
    along gradients that are rounding errors.
    """
    settings = settings_of(optimizer={"class_path": "SGD", "init_args": {"lr": 0.1}})

    def build() -> EdgeModule:
        torch.manual_seed(0)
        return EdgeModule(settings, {m: modalities[m] for m in ("profile", "fourier")})

    return build


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_s_own_trainer_takes_the_steps_of_a_plain_loop(
    still: Callable[[], EdgeModule],
    loader: DataLoader[Batch],
    trainer_of: Trainers,
    plain_loop: Callable[..., dict[str, Tensor]],
    precision: str,
) -> None:
    edge, twin, half = still(), still(), precision == "bf16-mixed"
    start = edge.trainable_state()
    trainer = trainer_of(max_steps=5, max_epochs=-1, precision=precision)
    trainer.fit(edge, loader, loader)
    expected = plain_loop(twin, islice(cycle(loader), 5), half=half)
    for name, value in edge.trainable_state().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    # L_LM does not use the readout; everything else has learned.
    assert {k for k, v in expected.items() if not torch.equal(v, start[k])} == {
        k for k in start if ".readout." not in k
    }
    # Validated after the last whole epoch, of two steps.
    before = still()
    plain_loop(before, islice(cycle(loader), 4), half=half)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = [float(before.eval()(batch)["loss"]) for batch in loader]
    logged = trainer.callback_metrics
    assert float(logged["val_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert {"train_loss", "val_loss"} <= set(logged)


def test_frozen_backbone_does_not_move(
    edge: EdgeModule, loader: DataLoader[Batch], trainer_of: Trainers
) -> None:
    frozen = {n: p.detach().clone() for n, p in edge.named_parameters() if not p.requires_grad}
    before = edge.trainable_state()
    trainer_of(max_steps=2).fit(edge, loader)
    after = dict(edge.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    moved = {k for k, v in edge.trainable_state().items() if not torch.equal(v, before[k])}
    # L_LM does not use the readout; everything else learns.
    assert moved == {k for k in before if ".readout." not in k}


def test_checkpoint_holds_no_frozen_weight_and_gives_the_same_model(
    edge: EdgeModule, loader: DataLoader[Batch], trainer_of: Trainers, tmp_path: Path
) -> None:
    trainer = trainer_of(max_steps=3, max_epochs=-1)
    trainer.fit(edge, loader)
    path = tmp_path / "edge.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    state = edge.trainable_state()
    # Nothing but plain values in the file: the default load of torch reads it.
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"].keys() == state.keys()
    trained = sum(v.numel() * v.element_size() for v in state.values())
    assert trained < path.stat().st_size < trained + 50_000
    assert path.stat().st_size < edge.parameter_bytes() - trained, "less than the frozen weights"

    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of hundreds of frozen keys that are not there
        again = EdgeModule.load_from_checkpoint(path)
    assert again.settings == edge.settings
    assert again.specs == edge.specs
    assert all(torch.equal(v, state[k]) for k, v in again.trainable_state().items())
    first, second = (trainer_of().predict(module, loader) for module in (edge, again))
    assert first == second
    assert [row["id"] for rows in first or [] for row in rows] == list(loader.dataset.ids)  # type: ignore[attr-defined]


def test_training_resumed_from_a_checkpoint_ends_in_the_same_bits(
    settings_of: Build,
    modalities: Specs,
    loader: DataLoader[Batch],
    trainer_of: Trainers,
    tmp_path: Path,
) -> None:
    # Vectors only: their extractor has no dropout, whose draws a checkpoint of Lightning lacks.
    specs = {m: modalities[m] for m in ("profile", "fourier")}

    def fit(epochs: int, **options: Any) -> tuple[EdgeModule, L.Trainer]:
        torch.manual_seed(0)
        edge, trainer = EdgeModule(settings_of(), specs), trainer_of(max_epochs=epochs)
        trainer.fit(edge, loader, **options)
        return edge, trainer

    unbroken, _ = fit(2)
    half, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(2, ckpt_path=tmp_path / "half.ckpt")
    whole, middle, end = (m.trainable_state() for m in (unbroken, half, resumed))
    assert all(torch.equal(end[k], whole[k]) for k in whole)
    assert not all(torch.equal(middle[k], whole[k]) for k in whole)


def test_checkpoint_that_does_not_fit_is_refused(
    edge: EdgeModule, settings_of: Build, modalities: Specs, trainer_of: Trainers, tmp_path: Path
) -> None:
    trainer = trainer_of(max_steps=0)
    trainer.strategy.connect(edge)
    trainer.save_checkpoint(tmp_path / "edge.ckpt")
    other = EdgeModule(settings_of(), {"pixels": modalities["pixels"]})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*extractors\.fourier"):
        trainer_of(max_steps=1).fit(other, [], ckpt_path=tmp_path / "edge.ckpt")
    saved = torch.load(tmp_path / "edge.ckpt", weights_only=True)
    del saved["state_dict"]["extractors.fourier.layers.0.weight"]
    torch.save(saved, tmp_path / "edge.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*extractors\.fourier\.layers\.0"):
        EdgeModule.load_from_checkpoint(tmp_path / "edge.ckpt")


def test_adapter_travels_between_edges_with_unlike_sensors(
    edge: EdgeModule, settings_of: Build, modalities: Specs
) -> None:
    torch.manual_seed(7)
    other = EdgeModule(settings_of(), {"pixels": modalities["pixels"]})
    mine, theirs = edge.adapter_state(), other.adapter_state()
    assert mine.keys() == theirs.keys()
    assert all(".lora_" in key for key in mine)
    other.load_adapter_state({k: v + 1 for k, v in mine.items()}, mix=0.5)
    for key, value in other.adapter_state().items():
        torch.testing.assert_close(value, 0.5 * (mine[key] + 1) + 0.5 * theirs[key])
    assert edge.backbone is edge.tower("slm").backbone
