"""MLPs in modules: nothing is lost with all on, and what is left out is gone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlecs_lightning.algorithms.eclm.modular import ModularMLPs
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings, LoraSettings
from tests.unit.nn.test_families import ASK, PROMPT, SAY, WIDTH, save

K = 4
TARGETS = {
    "gpt2": ["c_fc", "mlp.c_proj"],
    "llama": ["gate_proj", "up_proj", "down_proj"],
    "qwen2": ["gate_proj", "up_proj", "down_proj"],
    "gptj": ["fc_in", "fc_out"],
    "phi": ["fc1", "fc2"],
}
# Sums of other lengths, in other kernels: logits are at most 3e-6 off on three instruction sets.
ROUNDING = {"rtol": 1e-5, "atol": 3e-5}
EXACT = {"rtol": 1e-6, "atol": 1e-6}
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save(tmp_path_factory.mktemp(family), family) for family in TARGETS}


@pytest.fixture(params=TARGETS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(places: dict[str, str], family: str) -> Callable[..., Backbone]:
    """Build a backbone whose adapter does something, divided or whole."""

    def call(
        *,
        divided: bool = True,
        targets: list[str] | None = None,
        r: int = 2,
        **options: bool,
    ) -> Backbone:
        torch.manual_seed(1)
        lora = LoraSettings(r=r, alpha=8, dropout=0.0, target_modules=targets or TARGETS[family])
        backbone = Backbone(BackboneSettings(places[family]), lora)
        state = {k: torch.randn_like(v) * 0.1 for k, v in backbone.adapter_state().items()}
        backbone.load_adapter_state(state)
        if divided:
            backbone.add_module("modular", ModularMLPs(backbone.lm, K, **options))
        return backbone.eval()

    return call


@pytest.fixture
def prompt() -> Tensor:
    return torch.randn(len(ASK), PROMPT, WIDTH, generator=torch.Generator().manual_seed(2))


def mlps(backbone: Backbone) -> list[Any]:
    return [m for n, m in backbone.lm.named_modules() if n.endswith(".mlp")]


def modular(backbone: Backbone) -> ModularMLPs:
    found = backbone.get_submodule("modular")
    assert isinstance(found, ModularMLPs)
    return found


EMPTY = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]).bool()


def test_a_bypassed_layer_adds_its_bias_alone(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    gated, cut = build(bypass=True), build(bypass=True)
    # The last gate is the bypass's own, which adds nothing.
    gates = torch.cat([EMPTY, torch.ones(2, 1)], dim=1).float().expand(len(ASK), -1, -1)
    with modular(gated).gated(gates):
        expected = gated(prompt, ASK, SAY)
    modular(cut).select(EMPTY)
    torch.testing.assert_close(cut(prompt, ASK, SAY).logits, expected.logits, **ROUNDING)
    frozen = [
        sum(p.numel() for name, p in mlp.named_parameters() if "lora" not in name)
        for mlp in mlps(cut)
    ]
    assert frozen[1] <= WIDTH < frozen[0]  # the bias, if there is one
    modular(cut).select(MASK)  # it comes back, with a zero adapter
    assert torch.isfinite(cut(prompt, ASK, SAY).loss)
    with pytest.raises(ValueError, match="layers \\[1\\] would be empty"):
        modular(build()).select(EMPTY)


# Exact --------------------------------------------------------------------------------------------


def test_with_all_modules_on_the_model_is_the_undivided_one(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    whole, divided = build(divided=False), build()
    expected = whole(prompt, ASK, SAY).logits
    for gates in (None, torch.ones(len(ASK), 2, K)):
        if gates is None:
            logits = divided(prompt, ASK, SAY).logits
        else:
            with modular(divided).gated(gates):
                logits = divided(prompt, ASK, SAY).logits
        torch.testing.assert_close(logits, expected, **EXACT)
    # There and back again.
    modular(divided).select(MASK)
    assert not torch.allclose(divided(prompt, ASK, SAY).logits, expected, **ROUNDING)
    rows = modular(build()).rows()
    modular(divided).select(torch.ones(2, K).bool())
    modular(divided).load_rows(torch.arange(2 * K), rows)
    torch.testing.assert_close(divided(prompt, ASK, SAY).logits, expected, **EXACT)


def test_a_sum_over_the_modules_is_the_mlp(build: Callable[..., Backbone]) -> None:
    """MLP(x) = b + sum_k MLP_k(x): each module alone, without the bias of the last layer."""
    backbone = build()
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(3))
    first = mlps(backbone)[0]
    with torch.no_grad():
        expected = first(x)
        with modular(backbone).gated(torch.zeros(3, 2, K)):
            bias = first(x)
        total = bias.clone()
        for k in range(K):
            gates = torch.zeros(3, 2, K)
            gates[:, 0, k] = 1.0
            with modular(backbone).gated(gates):
                total += first(x) - bias
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


def test_a_cut_model_computes_what_a_gated_one_does(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    gated, cut = build(), build()
    with modular(gated).gated(MASK.float().expand(len(ASK), -1, -1)):
        expected = gated(prompt, ASK, SAY)
    modular(cut).select(MASK)
    found = cut(prompt, ASK, SAY)
    torch.testing.assert_close(found.logits, expected.logits, **ROUNDING)
    # The same gradient for the adapters of the modules that are there, and none for the others.
    expected.loss.backward()
    found.loss.backward()
    for whole, own in zip(
        modular(gated).own_parameters(), modular(cut).own_parameters(), strict=True
    ):
        # A cut parameter has neurons on the axis on which it is smaller.
        axis = next(i for i in (0, 1) if own.shape[i] != whole.shape[i])
        layer = MASK[0] if own.shape[axis] == 3 * whole.shape[axis] // K else MASK[1]
        neurons = layer.repeat_interleave(whole.shape[axis] // K).nonzero().flatten()
        torch.testing.assert_close(
            own.grad, whole.grad.index_select(axis, neurons), rtol=1e-4, atol=1e-5
        )
        others = (~layer).repeat_interleave(whole.shape[axis] // K).nonzero().flatten()
        assert not whole.grad.index_select(axis, others).any()


@pytest.mark.parametrize("bypass", [False, True])
def test_modules_count_with_their_importance_among_those_that_are_there(
    build: Callable[..., Backbone], prompt: Tensor, bypass: bool
) -> None:
    weighted, gated = build(weighted=True, bypass=bypass), build(bypass=bypass)
    # Equal gates are no gates: the undivided model.
    modular(weighted).weigh(torch.full((2, K + bypass), 1 / (K + bypass)))
    whole = build(divided=False)(prompt, ASK, SAY).logits
    torch.testing.assert_close(weighted(prompt, ASK, SAY).logits, whole, **EXACT)
    importance = torch.tensor([[0.4, 0.1, 0.2, 0.2], [0.1, 0.6, 0.1, 0.1]])
    weights = torch.tensor([[1.5, 0.0, 0.75, 0.75], [0.0, 1.0, 0.0, 0.0]])
    if bypass:  # the bypass takes its part: 4 / 0.9 and 2 / 0.7 in the place of 3 / 0.8 and 1 / 0.6
        importance = torch.cat([importance, torch.full((2, 1), 0.1)], dim=1)
        weights = importance[:, :K] * MASK * torch.tensor([[4 / 0.9], [2 / 0.7]])
    modular(weighted).select(MASK)
    modular(weighted).weigh(importance)
    with modular(gated).gated(weights.expand(len(ASK), -1, -1)):
        expected = gated(prompt, ASK, SAY).logits
    torch.testing.assert_close(weighted(prompt, ASK, SAY).logits, expected, **ROUNDING)
    # As an exported program and int8 have it: merged into the weights.
    weighted.lm = copy.deepcopy(weighted.lm).merge_and_unload()
    torch.testing.assert_close(weighted(prompt, ASK, SAY).logits, expected, **ROUNDING)
    with pytest.raises(ValueError, match="no weights"):
        modular(gated).weigh(importance)


def test_answers_of_a_cut_model_are_those_of_the_gated_one(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    gated, cut = build(), build()
    with modular(gated).gated(MASK.float().expand(len(ASK), -1, -1)):
        expected = gated.generate(prompt, ASK, max_new_tokens=4)
    modular(cut).select(MASK)
    assert cut.generate(prompt, ASK, max_new_tokens=4) == expected


# Small --------------------------------------------------------------------------------------------


def test_a_cut_model_is_physically_smaller(build: Callable[..., Backbone]) -> None:
    backbone = build()
    before = sum(p.numel() for p in backbone.lm.parameters())
    each = modular(backbone).module_parameters()
    modular(backbone).select(MASK)
    after = sum(p.numel() for p in backbone.lm.parameters())
    assert before - after == 4 * each  # four of eight are left out
    sizes = [sum(p.numel() for p in mlp.parameters()) for mlp in mlps(backbone)]
    assert sizes[0] - sizes[1] == 2 * each


def test_operations_are_counted_as_torch_counts_them(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    def count(backbone: Backbone) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone.read_prompt(prompt[:1])
        return int(counter.get_total_flops())

    backbone = build()
    whole = count(backbone)
    modular(backbone).select(MASK)
    assert whole - count(backbone) == 4 * PROMPT * modular(backbone).module_flops()


def test_cutting_leaves_the_weights_that_others_share(
    build: Callable[..., Backbone], places: dict[str, str], family: str, prompt: Tensor
) -> None:
    other = build(divided=False)
    before = other(prompt, ASK, SAY).loss.item()
    frozen = {k: v.clone() for k, v in load_frozen(other.settings)[0].state_dict().items()}
    modular(build()).select(MASK)
    assert other(prompt, ASK, SAY).loss.item() == before
    now = load_frozen(BackboneSettings(places[family]))[0].state_dict()
    assert all(torch.equal(frozen[k], v) for k, v in now.items())


def test_without_lora_on_the_mlps_they_can_be_cut_all_the_same(
    build: Callable[..., Backbone], family: str, prompt: Tensor
) -> None:
    attention = {"gpt2": ["c_attn"]}.get(family, ["q_proj"])
    gated, cut = build(targets=attention), build(targets=attention)
    assert modular(cut).row_size == 0
    with modular(gated).gated(MASK.float().expand(len(ASK), -1, -1)):
        expected = gated(prompt, ASK, SAY).logits
    modular(cut).select(MASK)
    torch.testing.assert_close(cut(prompt, ASK, SAY).logits, expected, **ROUNDING)


# What travels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"], indirect=True)
def test_rows_carry_the_modules_of_one_model_to_another(
    build: Callable[..., Backbone], family: str
) -> None:
    sender, receiver = build(), build(r=2)
    for p in modular(sender).own_parameters():
        p.data += torch.randn_like(p)
    modular(receiver).select(MASK)
    # 16 neurons, r = 2, two layers in GPT-2 (of 32 neurons a module) and three in Llama.
    assert modular(receiver).row_size == {"gpt2": 32 * 2 * 2, "llama": 16 * 2 * 3}[family]
    before = modular(receiver).rows()
    index = torch.tensor([3, 5])
    modular(receiver).load_rows(index, modular(sender).rows(index))
    after = modular(receiver).rows()
    assert modular(receiver).index().tolist() == [0, 2, 3, 5]
    assert torch.equal(after[2:], modular(sender).rows(index))
    assert torch.equal(after[:2], before[:2])
    for action in (
        lambda: modular(receiver).rows(torch.tensor([1])),
        lambda: modular(receiver).load_rows(torch.tensor([1]), before[:1]),
    ):
        with pytest.raises(KeyError, match=r"modules \[1\] are not there"):
            action()


def test_modules_that_stay_keep_their_adapters_and_new_ones_begin_empty(
    build: Callable[..., Backbone],
) -> None:
    backbone = build()
    whole = modular(backbone).rows()
    modular(backbone).select(MASK)
    wider = MASK.clone()
    wider[1, 3] = True
    modular(backbone).select(wider)
    rows = modular(backbone).rows()
    assert torch.equal(rows[:4], whole[[0, 2, 3, 5]])
    assert not rows[4].any()
    assert rows[:4].any(dim=1).all()


def test_an_optimiser_holds_on_to_the_parameters(build: Callable[..., Backbone]) -> None:
    backbone = build()
    owns = modular(backbone).own_parameters()
    modular(backbone).select(MASK)
    assert all(a is b for a, b in zip(owns, modular(backbone).own_parameters(), strict=True))
    mine = {id(p) for p in backbone.lm.parameters() if p.requires_grad}
    assert {id(p) for p in owns} <= mine
    assert mine == {id(p) for p in (*owns, *modular(backbone).trunk_parameters())}


# What cannot be divided ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_what_cannot_be_divided_is_named(
    build: Callable[..., Backbone], tmp_path: Path, family: str
) -> None:
    backbone = build(divided=False)
    with pytest.raises(ConfigurationError, match="3 modules do not divide its 128 neurons"):
        ModularMLPs(backbone.lm, 3)
    with pytest.raises(ConfigurationError, match="no MLPs that can be divided"):
        ModularMLPs(nn.Linear(2, 2), 2)
    divided = ModularMLPs(backbone.lm, K)
    with pytest.raises(ValueError, match=r"expected shape \(2, 4\), got \(1, 4\)"):
        divided.select(MASK[:1])
    with pytest.raises(ValueError, match=r"layers \[1\] would be empty"):
        divided.select(torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]).bool())
