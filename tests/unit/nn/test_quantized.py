import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as Int8Linear
from transformers.pytorch_utils import Conv1D

from mlecs_lightning.algorithms import Standalone
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings, LoraSettings
from tests.unit.updates import dense


@pytest.fixture(scope="module")
def backbone(tiny: SimpleNamespace) -> Backbone:
    """A pocket backbone whose adapter says something."""
    torch.manual_seed(0)
    made = Backbone(BackboneSettings(tiny.pocket()), LoraSettings(r=4, alpha=8, dropout=0.0))
    made.load_adapter_state(
        {k: 0.05 * torch.randn_like(v) for k, v in made.adapter_state().items()}
    )
    return made.eval()


def logits(backbone: Backbone, prompt: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone(
            prompt, ["describe the digit ."] * len(prompt), ["a bold two"] * len(prompt)
        ).logits


def test_the_linear_layers_are_in_int8_and_say_nearly_the_same(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    prompt = 0.1 * torch.randn(6, 4, backbone.hidden_size, generator=generator)
    before = logits(backbone, prompt)
    model = backbone.lm
    with backbone.in_int8():
        dtypes = [m.weight().dtype for m in backbone.lm.modules() if isinstance(m, Int8Linear)]
        others = [m for m in backbone.lm.modules() if type(m) in (nn.Linear, Conv1D)]
        rough = logits(backbone, prompt)
    assert dtypes == [torch.qint8] * (3 * 4 + 1)  # four layers a block, and the output
    assert others == []
    assert not torch.equal(rough, before)
    # 0.019 with a spread of 0.004, over pocket weights, adapters and prompts.
    assert float((rough - before).norm() / before.norm()) < 0.06
    assert backbone.lm is model
    assert torch.equal(logits(backbone, prompt), before)


def test_the_adapter_is_merged_into_it(backbone: Backbone) -> None:
    """Each weight is at most half a step of its layer from W + alpha / r B A."""
    with backbone.in_int8():
        layers = [(n, m) for n, m in backbone.lm.named_modules() if isinstance(m, Int8Linear)]
        rounded = {name: layer.weight() for name, layer in layers}
    base, _ = load_frozen(backbone.settings)
    adapter, beyond = backbone.adapter_state(), 0
    for name, weight in rounded.items():
        layer, half = base.get_submodule(name), 0.501 * weight.q_scale()
        exact = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        if f"base_model.model.{name}.lora_A.weight" in adapter:
            merged = exact + dense(adapter, f"base_model.model.{name}", 2.0)
            # Without the adapter it would be further than rounding takes it.
            beyond += bool((weight.dequantize() - exact).abs().max() > half)
            exact = merged
        assert (weight.dequantize() - exact).abs().max() <= half
    assert beyond == 3, "c_attn of each block"


def test_a_client_answers_in_int8_and_trains_as_before(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.parties(
        {"hall": ClientSettings(["fourier"])}, edge=tiny.model(inference="int8")
    )
    data = tiny.data()
    federation = tiny.build(Standalone(), settings, data)
    edge = federation.edge("hall")
    seen: list[bool] = []
    generate = Backbone.generate

    def spied(self: Backbone, *args: object, **more: object) -> list[str]:
        seen.append(any(isinstance(m, Int8Linear) for m in self.lm.modules()))
        return generate(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "generate", spied)
    (batch,) = tiny.loaders(data, "hall").private.take(1, seed=0)
    before = copy.deepcopy(edge.module.adapter_state())
    assert len(edge.predict([batch])) == 8
    federation.server.predict([batch])
    assert seen == [True, False]
    edge.fit([batch], stage="private")
    assert any(not torch.equal(before[k], v) for k, v in edge.module.adapter_state().items())


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_int8_in_another_precision_is_refused_at_the_start(
    tiny: SimpleNamespace, tmp_path: object, precision: str
) -> None:
    settings = tiny.parties(
        {"hall": ClientSettings(["fourier"])}, edge=tiny.model(inference="int8")
    )
    with pytest.raises(ConfigurationError, match=r"clients\.hall\.inference: int8 needs .*bf16"):
        tiny.fit(Standalone(), tmp_path, settings, precision=precision)


def test_four_bits_without_a_gpu_are_refused(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = tiny.parties(
        {"hall": ClientSettings(["fourier"], backbone={"quantization": "4bit"})}
    )
    with pytest.raises(ConfigurationError, match=r"quantization '4bit' needs a CUDA GPU"):
        tiny.build(Standalone(), settings)


def test_what_hangs_on_a_layer_stays(backbone: Backbone) -> None:
    layer = next(each for each in backbone.lm.modules() if isinstance(each, Conv1D))
    handle = layer.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    with backbone.in_int8():
        kept = [each for each in backbone.lm.modules() if each._forward_pre_hooks]
    handle.remove()
    assert [type(each) for each in kept] == [Int8Linear]


def test_a_model_in_bfloat16_answers_in_int8(tiny: SimpleNamespace) -> None:
    settings = BackboneSettings(tiny.pocket(), dtype="bfloat16")
    made = Backbone(settings, LoraSettings(r=4, alpha=8, dropout=0.0)).eval()
    with made.in_int8():
        assert torch.isfinite(logits(made, 0.1 * torch.randn(2, 4, made.hidden_size))).all()
