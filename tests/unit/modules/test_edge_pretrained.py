"""Edges and servers whose extractors are encoders of transformers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlecs_lightning import MLECS
from mlecs_lightning.modules import EdgeModule, MultimodalLM, ServerModule
from mlecs_lightning.nn import PretrainedExtractor
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ClientProfile, ModalitySpec

Build = Callable[..., ModelSettings]
Specs = Mapping[str, ModalitySpec]
Trainers = Callable[..., L.Trainer]


class RandomFeatures(nn.Module):
    """An extractor whose weights are drawn and then fixed; nothing could load them again."""

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        self.out_features = 8
        self.weight = nn.Parameter(torch.randn(spec.shape[0], 8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).cos()


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings_of: Build) -> None:
    """Keep features apart; the pocket models of ``settings_of`` are made already."""
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import ViTConfig, ViTModel

    path = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(**size, num_attention_heads=2, image_size=8, patch_size=4)
        ViTModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture
def looking(settings_of: Build, vit_dir: str) -> Build:
    """Return a builder of settings that look at the pixels through a pretrained encoder."""

    def build(pocket: str = "slm", **init_args: Any) -> ModelSettings:
        setting = {
            "class_path": "PretrainedExtractor",
            "init_args": {"model": vit_dir, **init_args},
        }
        return settings_of(pocket, extractors={"pixels": setting})

    return build


def encoder_of(module: MultimodalLM) -> PretrainedExtractor:
    extractor = module.extractors["pixels"]
    assert isinstance(extractor, PretrainedExtractor)
    return extractor


def weights_of(module: MultimodalLM) -> dict[str, int]:
    """Return where each weight of the encoder lies, the adapter's left out."""
    return {n: p.data_ptr() for n, p in encoder_of(module).named_parameters() if "lora_" not in n}


@pytest.fixture
def specs(modalities: Specs) -> Specs:
    return {m: modalities[m] for m in ("pixels", "profile")}


# State --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_state_is_what_trains_and_ddp_ignores_the_rest(
    looking: Build, specs: Specs, tune: str
) -> None:
    for module in (
        EdgeModule(looking(tune=tune), specs),
        ServerModule(looking("llm", tune=tune), looking(tune=tune), specs),
    ):
        learned = {n for n, p in module.named_parameters() if p.requires_grad}
        assert set(module.trainable_state()) == learned
        own = {n for n in learned if n.startswith("extractors.pixels.")}
        assert bool(own) == (tune != "frozen")
        assert all(("lora_" in n) == (tune == "lora") for n in own)
        everything = {n for n, _ in module.named_parameters(remove_duplicate=False)}
        everything |= {n for n, _ in module.named_buffers(remove_duplicate=False)}
        assert set(module._ddp_params_and_buffers_to_ignore) == everything - learned
        # What is frozen for a pass is still a part of the state.
        with module.frozen_extractors():
            assert not any(p.requires_grad for p in module.extractors.parameters())
            assert set(module.trainable_state()) == learned


def test_clients_and_server_share_one_frozen_encoder(looking: Build, specs: Specs) -> None:
    first = EdgeModule(looking(), specs)
    second = EdgeModule(looking(tune="lora"), {"pixels": specs["pixels"]})
    server = ServerModule(looking("llm"), looking(), specs)
    full = EdgeModule(looking(tune="full"), specs)
    places = set(weights_of(first).values())
    assert set(weights_of(server).values()) == set(weights_of(second).values()) == places
    assert not set(weights_of(full).values()) & places
    assert first.parameter_count() == full.parameter_count(), "frozen weights count"


def test_fixed_random_weights_are_stored(settings_of: Build, specs: Specs) -> None:
    setting = {"class_path": f"{__name__}.RandomFeatures"}
    settings = settings_of(extractors={"profile": setting})
    first, second = (EdgeModule(settings, specs) for _ in range(2))
    key = "extractors.profile.weight"
    assert not torch.equal(first.state_dict()[key], second.state_dict()[key])
    second.load_trainable_state(first.trainable_state())
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_edge_trains_and_comes_back_from_its_checkpoint(
    looking: Build,
    specs: Specs,
    loader: DataLoader[Batch],
    trainer_of: Trainers,
    tmp_path: Path,
    tune: str,
) -> None:
    torch.manual_seed(0)
    edge = EdgeModule(looking(tune=tune), specs)
    before = {n: v.clone() for n, v in edge.state_dict().items()}
    trainer = trainer_of(max_steps=2, max_epochs=-1)
    trainer.fit(edge, loader)
    moved = {n for n, v in edge.state_dict().items() if not torch.equal(v, before[n])}
    pixels = {n for n in edge.trainable_state() if n.startswith("extractors.pixels.")}
    assert {n for n in moved if n.startswith("extractors.pixels.")} == pixels
    assert "towers.slm.connector.projections.pixels.weight" in moved

    trainer.save_checkpoint(tmp_path / "edge.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "edge.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == edge.trainable_state().keys()
    torch.manual_seed(99)
    again = EdgeModule.load_from_checkpoint(tmp_path / "edge.ckpt")
    assert all(torch.equal(v, edge.state_dict()[n]) for n, v in again.state_dict().items())
    first, second = (trainer_of().predict(module, loader) for module in (edge, again))
    assert first == second


def test_second_epoch_runs_no_frozen_encoder_and_ends_alike(
    looking: Build, specs: Specs, loader: DataLoader[Batch], trainer_of: Trainers
) -> None:
    # Not Adam, which takes steps of full size along gradients that are rounding errors: alone and
    # in a batch a sample's features differ in their last bits.
    sgd = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    ends = []
    for cache_gb, expected in ((0, [8, 8, 8, 8]), (1, [1] * 11)):
        torch.manual_seed(0)
        settings = replace(looking(cache_gb=cache_gb), optimizer=sgd)
        edge, calls = EdgeModule(settings, specs), []
        encoder_of(edge).encoder.register_forward_pre_hook(
            lambda _, __, kwargs, seen=calls: seen.append(len(kwargs["pixel_values"])),
            with_kwargs=True,
        )
        trainer_of(max_epochs=2).fit(edge, loader)
        # 16 samples, 6 of which lack their pixels: those all look the same.
        assert calls == expected
        ends.append(edge.trainable_state())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-5, rtol=1e-4)


def test_federation_trains_and_keeps_no_encoder(
    tiny: SimpleNamespace, vit_dir: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLECS_CACHE", str(cache_dir))  # the pocket models of `tiny`
    setting = {"class_path": "PretrainedExtractor", "init_args": {"model": vit_dir, "cache_gb": 0}}
    looking = tiny.model(extractors={"pixels": setting})
    parties = tiny.parties(server=looking, edge=looking)
    federation = tiny.build(MLECS(steps=tiny.steps()), parties)
    kitchen = federation.edge("kitchen")
    assert weights_of(kitchen.module) == weights_of(federation.server.module)
    kept = kitchen.state_dict()["model"]
    assert not any(name.startswith("extractors.pixels.") for name in kept)
    assert any(name.startswith("extractors.profile.") for name in kept)
    data = tiny.data()
    data.attach({"kitchen": ClientProfile(("pixels", "profile"))})
    kitchen.fit([data.private("kitchen").__getitems__(range(8))] * 2, stage="private")
    moved = kitchen.state_dict()["model"]
    assert {n for n in moved if not torch.equal(moved[n], kept[n])} == {
        n for n in moved if ".readout." not in n
    }


def test_unknown_extractor_is_answered_with_the_names_of_ours(
    settings_of: Build, specs: Specs
) -> None:
    settings = settings_of(extractors={"pixels": {"class_path": "ResNet"}})
    with pytest.raises(ValueError, match=r"one of \['ImageCNN', 'PretrainedExtractor', 'Ser"):
        EdgeModule(settings, specs)
