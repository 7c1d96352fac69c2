"""What ECLM adds to the modules: prototypes, states of sub-models, and what is counted."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.algorithms.eclm.models import (
    CloudParts,
    DeviceParts,
    count_costs,
    modular_of,
    pack,
    prototype_names,
    unpack,
)
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch

K, TARGETS = 4, ["c_fc", "mlp.c_proj"]


@pytest.fixture
def model(tiny: SimpleNamespace) -> Callable[..., Any]:
    def call(targets: list[str] | None = TARGETS, **values: Any) -> ModelSettings:
        backbone = {"model": tiny.pocket(), **values}
        settings: ModelSettings = tiny.model(backbone=backbone, lora={"target_modules": targets})
        return settings

    return call


@pytest.fixture
def server(tiny: SimpleNamespace, model: Callable[..., Any]) -> ServerModule:
    torch.manual_seed(0)
    module = ServerModule(model(), model(), dict(tiny.data().modalities))
    CloudParts.add(module, K, 2)
    return module.eval()


@pytest.fixture
def edge(tiny: SimpleNamespace, model: Callable[..., Any]) -> EdgeModule:
    torch.manual_seed(1)
    specs = tiny.data().modalities
    module = EdgeModule(model(), {m: specs[m] for m in ("fourier", "pixels")})
    DeviceParts.add(module, K, tuple(specs))
    return module.eval()


def batch_of(tiny: SimpleNamespace, edge: EdgeModule) -> Batch:
    batch: Batch = tiny.data().public(modalities=edge.modalities).__getitems__(list(range(6)))
    return batch


def test_a_prototype_makes_a_device_the_cloud_s_model(
    tiny: SimpleNamespace, server: ServerModule, edge: EdgeModule
) -> None:
    """With all modules it answers as the cloud does without the modality that it lacks."""
    with torch.no_grad():
        for p in server.tower("slm").backbone.lm.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
        server.tower("slm").connector.absent.normal_()
    names = prototype_names(edge)
    unpack(edge, names, pack(server, names))
    everything = torch.arange(modular_of(server).mask.numel())
    modular_of(edge).select(torch.ones_like(modular_of(edge).mask))
    modular_of(edge).load_rows(everything, modular_of(server).rows())
    batch = batch_of(tiny, edge)
    expected = server.read(batch)
    found = edge.read(batch)
    assert torch.equal(found.embeddings.fused, expected.embeddings.fused)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    gates = CloudParts.of(server).selector(expected.embeddings.fused).softmax(-1)
    torch.testing.assert_close(DeviceParts.measure(edge, batch), gates)


def test_a_prototype_holds_no_module_and_no_frozen_weight(
    server: ServerModule, edge: EdgeModule
) -> None:
    names = prototype_names(edge)
    owns = {id(p) for p in modular_of(edge).own_parameters()}
    mine = {n for n, p in edge.named_parameters() if id(p) in owns}
    frozen = set(edge._ddp_params_and_buffers_to_ignore)
    assert not names.keys() & (mine | frozen)
    assert set(names.values()) <= server.trainable_state().keys()
    assert any(".lora_A." in n for n in names)
    assert any(".lora_B." in n for n in names)
    with pytest.raises(ValueError, match="a prototype of 3 numbers, expected "):
        unpack(edge, names, torch.zeros(3))


def test_only_modules_connector_and_extractors_train_on_a_device(edge: EdgeModule) -> None:
    trained = {n for n, p in edge.named_parameters() if p.requires_grad}
    trunk = {id(p) for p in modular_of(edge).trunk_parameters()}
    assert not any(id(p) in trunk for p in edge.trainable_parameters())
    assert {n.split(".")[0] for n in trained} == {"extractors", "towers"}


def test_a_state_brings_the_form_of_its_sub_model(tiny: SimpleNamespace, edge: EdgeModule) -> None:
    """Clients of one architecture share a live module: each state cuts it anew."""
    generator = torch.Generator().manual_seed(0)
    batch, states, expected = batch_of(tiny, edge), [], []
    for seed in range(3):
        mask = torch.rand(modular_of(edge).shape, generator=generator) > 0.5
        mask[:, seed] = True
        modular_of(edge).select(mask)
        with torch.no_grad():
            for p in modular_of(edge).own_parameters():
                p.normal_(std=0.2, generator=generator)
        states.append(edge.trainable_state())
        expected.append(edge(batch)["loss"].item())
    assert len({s["towers.slm.backbone.modular.mask"].sum().item() for s in states}) > 1
    for state, loss in zip(states, expected, strict=True):
        edge.load_trainable_state(state)
        assert edge(batch)["loss"].item() == loss
        assert all(torch.equal(v, state[k]) for k, v in edge.trainable_state().items())


def test_what_a_sub_model_costs_is_what_it_has(edge: EdgeModule) -> None:
    costs = count_costs(edge)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        mask = torch.rand(modular_of(edge).shape, generator=generator) > 0.5
        mask[:, 0] = True
        modular_of(edge).select(mask)
        spent = costs.of(mask)
        assert spent["parameters"] == edge.parameter_count()
        trained = sum(p.numel() * 4 for p in edge.trainable_parameters())
        assert spent["memory_mib"] == pytest.approx(
            (edge.parameter_bytes() + 3 * trained) / 2**20, rel=1e-9
        )
        prompt = torch.zeros(1, 4, edge.backbone.hidden_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            edge.backbone.read_prompt(prompt)
        assert spent["mflops"] == pytest.approx(counter.get_total_flops() / 1e6, rel=1e-9)
        assert spent["modules"] == pytest.approx(float(mask.float().mean()))
        assert costs.fit(mask, Budget(parameters=edge.parameter_count()))
        assert not costs.fit(mask, Budget(parameters=edge.parameter_count() - 1))


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["c_fc", "c_proj"], r"adapts \['attn.c_proj'\]; ECLM adapts layers of the MLPs alone"),
        (["c_attn", "c_fc"], r"adapts \['attn.c_attn'\]"),
    ],
)
def test_adapters_beside_the_modules_are_refused(
    tiny: SimpleNamespace, model: Callable[..., Any], targets: list[str], words: str
) -> None:
    module = EdgeModule(model(targets), dict(tiny.data().modalities))
    with pytest.raises(ConfigurationError, match=words):
        DeviceParts.add(module, K, tuple(tiny.data().modalities))


def test_checkpointed_activations_are_refused(
    tiny: SimpleNamespace, model: Callable[..., Any]
) -> None:
    """They would be computed again when the gates are gone."""
    module = EdgeModule(model(gradient_checkpointing=True), dict(tiny.data().modalities))
    with pytest.raises(ConfigurationError, match="cannot work with gradient_checkpointing"):
        DeviceParts.add(module, K, tuple(tiny.data().modalities))
