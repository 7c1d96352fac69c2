"""Causal language models of many families, built small, saved, and loaded as any other is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings, LoraSettings

WORDS = ["what", "is", "the", "person", "doing", "now", "please", "upright", "falling", "down"]
WORDS += ["lying", "on", "floor", "."]
# Unlike lengths, so that every row is padded in its own way; one is empty.
ASK = ["what is the person doing .", "the person", "", "please what is the person doing now ."]
SAY = ["upright .", "the person is lying on the floor .", "falling down", "lying"]
LORA = LoraSettings(r=2, alpha=8, dropout=0.0)
WIDTH, PROMPT = 32, 3
Bits = Literal["4bit", "8bit"]

_GQA = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
# Class of the configuration, its size, and the layers that LoRA adapts where nothing is said.
FAMILIES: dict[str, tuple[str, dict[str, Any], set[str] | None]] = {
    "gpt2": ("GPT2Config", _GPT, {"c_attn"}),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}, {"q_proj", "v_proj"}),
    "llama": ("LlamaConfig", _GQA, {"q_proj", "v_proj"}),
    # SmolLM and SmolLM2 are Llamas whose input and output embeddings are one.
    "smollm": ("LlamaConfig", {**_GQA, "tie_word_embeddings": True}, {"q_proj", "v_proj"}),
    "smollm3": ("SmolLM3Config", _GQA, {"q_proj", "v_proj"}),
    "qwen2": ("Qwen2Config", _GQA, {"q_proj", "v_proj"}),
    "qwen3": ("Qwen3Config", {**_GQA, "head_dim": 8}, {"q_proj", "v_proj"}),
    "phi": ("PhiConfig", _GQA, {"q_proj", "v_proj", "fc1", "fc2"}),
    "phi3": ("Phi3Config", {**_GQA, "original_max_position_embeddings": 64}, None),
}
# What is given to the families for which PEFT has no default.
GIVEN = {"phi3": ["qkv_proj", "down_proj"]}
# Built where a test asks for it.
OTHERS: dict[str, tuple[str, dict[str, Any], set[str] | None]] = {
    "gemma3": ("Gemma3TextConfig", {**_GQA, "head_dim": 8}, None)
}


def save(path: Path, family: str, **values: Any) -> str:
    """Write an untrained model of a family, and a tokenizer of whole words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(["<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(path)
    name, size, _ = {**FAMILIES, **OTHERS}[family]
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    # Wide enough that what a model says depends on what it reads.
    wide = {"vocab_size": len(vocabulary), "initializer_range": 0.3, **special}
    config = getattr(transformers, name)(**{**size, **wide, **values})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


SLOW = {"smollm", "smollm3", "qwen2", "phi"}  # like others: only their names differ


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model_dir(family: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def lora(family: str) -> LoraSettings:
    return replace(LORA, target_modules=GIVEN.get(family))


@pytest.fixture
def build(model_dir: str, lora: LoraSettings) -> Callable[..., Backbone]:
    """Build a backbone whose adapter does something: a fresh one changes nothing."""

    def call(**values: Any) -> Backbone:
        torch.manual_seed(1)
        backbone = Backbone(BackboneSettings(model_dir, **values), lora)
        state = {k: torch.randn_like(v) * 0.1 for k, v in backbone.adapter_state().items()}
        backbone.load_adapter_state(state)
        return backbone.eval()

    return call


@pytest.fixture
def prompt() -> Tensor:
    return torch.randn(len(ASK), PROMPT, WIDTH, generator=torch.Generator().manual_seed(2))


# Adapter ------------------------------------------------------------------------------------------


def test_lora_adapts_the_default_of_the_family_or_what_is_given(
    build: Callable[..., Backbone], family: str
) -> None:
    adapted = {key.split(".lora_")[0].split(".")[-1] for key in build().adapter_state()}
    assert adapted == (FAMILIES[family][2] or set(GIVEN[family]))


@pytest.mark.parametrize("family", GIVEN, indirect=True)
def test_family_without_a_default_asks_for_layers_and_names_them(
    model_dir: str, family: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^lora\.target_modules: .*{family}") as caught:
        Backbone(BackboneSettings(model_dir), LORA)
    assert all(repr(name) in str(caught.value) for name in GIVEN[family])
    assert "lm_head" not in str(caught.value)


def test_one_wrong_name_among_right_ones_is_found(build: Callable[..., Backbone]) -> None:
    right = next(iter(build().adapter_state())).split(".lora_")[0].split(".")[-1]
    both = replace(LORA, target_modules=[right, "nowhere"])
    message = rf"no layers \['nowhere'\]; its linear layers are .*'{right}'"
    with pytest.raises(ConfigurationError, match=message):
        Backbone(build().settings, both)


def test_adapter_makes_the_round_trip(
    build: Callable[..., Backbone], model_dir: str, lora: LoraSettings, prompt: Tensor
) -> None:
    sender, receiver = build(), Backbone(BackboneSettings(model_dir), lora).eval()
    assert sender(prompt, ASK, SAY).loss != receiver(prompt, ASK, SAY).loss
    receiver.load_adapter_state(sender.adapter_state())
    assert sender(prompt, ASK, SAY).loss == receiver(prompt, ASK, SAY).loss
    # One copy of the weights, whether it trains with checkpoints or not.
    places = [
        {p.data_ptr() for n, p in b.lm.named_parameters() if ".lora_" not in n}
        for b in (sender, receiver, build(gradient_checkpointing=True))
    ]
    assert places[0] == places[1] == places[2]


# Passes -------------------------------------------------------------------------------------------


def test_gradient_reaches_the_prompt_and_the_adapter_alone(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    backbone = build()
    soft = prompt.requires_grad_()
    backbone(soft, ASK, SAY).loss.backward()
    assert soft.grad is not None
    assert soft.grad.flatten(1).any(dim=1).all()
    learned = {n for n, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {n for n, _ in backbone.named_parameters() if ".lora_" in n}


def test_padded_batch_scores_as_its_samples_one_by_one(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    backbone = build()
    together = backbone(prompt, ASK, SAY)
    assert together.logits.shape[:2] == together.labels.shape
    for i in range(len(ASK)):
        alone = backbone(prompt[i : i + 1], ASK[i : i + 1], SAY[i : i + 1])
        mine = together.logits[i][together.labels[i] >= 0]
        torch.testing.assert_close(mine, alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            together.prompt_hidden[i], alone.prompt_hidden[0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"], indirect=True)
def test_family_that_returns_all_logits_scores_the_same(
    build: Callable[..., Backbone], prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build()
    expected = backbone(prompt[:2], ASK[:2], SAY[:2])
    lm = backbone.lm.base_model.model
    forward = lm.forward

    def all_of_them(*args: Any, logits_to_keep: int, **options: Any) -> object:
        assert logits_to_keep > 0
        return forward(*args, **options)

    monkeypatch.setattr(lm, "forward", all_of_them)
    out = backbone(prompt[:2], ASK[:2], SAY[:2])
    assert torch.equal(out.labels, expected.labels)
    torch.testing.assert_close(out.logits, expected.logits)


def greedy(backbone: Backbone, prompt: Tensor, ask: str, *, steps: int) -> str:
    """Say the likeliest word, append it, and read all again: no cache, no mask, no padding."""
    embed = backbone.lm.get_input_embeddings()
    tokens: list[int] = backbone.tokenizer(ask)["input_ids"]
    start = len(tokens)
    for _ in range(steps):
        words = embed(torch.tensor([tokens], dtype=torch.long))
        logits = backbone.lm(inputs_embeds=torch.cat([prompt[None], words], 1)).logits
        tokens = [*tokens, int(logits[0, -1].argmax())]
        if tokens[-1] == backbone.tokenizer.eos_token_id:
            break
    return str(backbone.tokenizer.decode(tokens[start:], skip_special_tokens=True))


def test_answers_are_greedy_and_the_same_in_a_batch_and_one_by_one(
    build: Callable[..., Backbone], prompt: Tensor
) -> None:
    backbone = build()
    together = backbone.generate(prompt, ASK, max_new_tokens=6)
    with torch.no_grad():
        assert together == [
            greedy(backbone, p, ask, steps=6) for p, ask in zip(prompt, ASK, strict=True)
        ]
    assert together == [
        backbone.generate(prompt[i : i + 1], ASK[i : i + 1], max_new_tokens=6)[0]
        for i in range(len(ASK))
    ]
    assert len(set(together)) > 1, "answers that do not depend on what is read show nothing"


def test_checkpointed_activations_give_the_same_gradients(
    build: Callable[..., Backbone], prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for on in (False, True):
        backbone, passes = build(gradient_checkpointing=on).train(), []
        layer = next(m for n, m in backbone.lm.named_modules() if n.endswith((".h.0", ".layers.0")))
        # Hooks run inside the checkpoint: forward, and once more in the backward pass.
        next(layer.children()).register_forward_hook(lambda *_, seen=passes: seen.append(1))
        soft = prompt.clone().requires_grad_()
        torch.manual_seed(3)  # of the dropout of GPT-2 and Phi, drawn twice and alike
        loss = backbone(soft, ASK, SAY).loss
        loss.backward()
        learned = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
        runs.append((loss.detach(), soft.grad, learned, len(passes)))
    (loss, soft_grad, learned, once), (loss_, soft_grad_, learned_, twice) = runs
    assert (once, twice) == (1, 2)
    assert loss == loss_
    torch.testing.assert_close(soft_grad, soft_grad_)
    assert learned.keys() == learned_.keys()
    assert learned
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, learned_[name])


# Vocabularies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"], indirect=True)
def test_vocabulary_larger_than_the_tokenizer_s_serves(
    family: str, prompt: Tensor, tmp_path: Path
) -> None:
    backbone = Backbone(BackboneSettings(save(tmp_path, family, vocab_size=64)), LORA).eval()
    assert len(backbone.tokenizer) < 64
    assert backbone(prompt, ASK, SAY).logits.shape[-1] == 64
    assert len(backbone.generate(prompt, ASK, max_new_tokens=6)) == len(ASK)


def test_padding_token_that_the_model_does_not_embed_is_not_used(
    prompt: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    path = save(tmp_path, "llama")
    plain = Backbone(BackboneSettings(path), LORA).eval()
    expected = plain(prompt, ASK, SAY).loss
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(path)
    padded = Backbone(BackboneSettings(path, local_files_only=True), LORA).eval()
    assert padded.tokenizer.pad_token_id == len(WORDS) + 2
    assert padded(prompt, ASK, SAY).loss == expected
    assert padded.generate(prompt, ASK, max_new_tokens=4) == plain.generate(
        prompt, ASK, max_new_tokens=4
    )


def test_tokenizer_of_another_model_is_found(prompt: Tensor, tmp_path: Path) -> None:
    backbone = Backbone(BackboneSettings(save(tmp_path, "llama", vocab_size=8)), LORA)
    with pytest.raises(ConfigurationError, match=r"'upright \.' with token \d+, .* embeds only 8"):
        backbone(prompt, [""] * len(SAY), SAY)


# How a model is loaded ----------------------------------------------------------------------------


def test_revision_and_hub_access_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    path, asked = save(tmp_path, "gpt2"), []
    for loader in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        load = loader.from_pretrained

        def spied(*args: Any, load: Callable[..., object] = load, **options: Any) -> object:
            asked.append({k: options.get(k) for k in ("revision", "local_files_only")})
            return load(*args, **options)

        monkeypatch.setattr(loader, "from_pretrained", spied)
    load_frozen(BackboneSettings(path, revision="v2", local_files_only=True))
    assert asked == [{"revision": "v2", "local_files_only": True}] * 2


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("gpu", [False, True])
def test_quantization_says_what_is_missing(
    bits: Bits, gpu: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers.utils import import_utils

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(import_utils, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigurationError, match=rf"backbone\.quantization '{bits}'") as caught:
        load_frozen(BackboneSettings(str(tmp_path), quantization=bits))
    assert ("GPU" in str(caught.value)) == (not gpu)
    assert "mlecs_lightning[quantized]" in str(caught.value)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantization_is_that_of_the_settings(
    bits: Bits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    path, asked = save(tmp_path, "gpt2"), []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def spied(name: str, **options: Any) -> object:
        asked.append((options.pop("quantization_config"), options.pop("device_map")))
        return load(name, **options)

    # A machine with a GPU up to the point where weights would go there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(transformers.utils.import_utils, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spied)
    load_frozen(BackboneSettings(path, quantization=bits))
    ((config, device_map),) = asked
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == "4bit", bits == "8bit")
    assert device_map == {"": 1}
    if bits == "4bit":
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_prompt_is_scaled_as_a_familys_tokens_are(tmp_path: Path, prompt: Tensor) -> None:
    """Gemma multiplies the embeddings of its tokens by the root of its width."""
    plain = Backbone(BackboneSettings(save(tmp_path / "llama", "llama")), LORA)
    lora = replace(LORA, target_modules=["q_proj"])
    scaled = Backbone(BackboneSettings(save(tmp_path / "gemma", "gemma3")), lora)
    for backbone, factor in ((plain, 1.0), (scaled, WIDTH**0.5)):
        ahead = len(backbone.coder.start)
        found = backbone._sequence(prompt)[:, ahead:]
        torch.testing.assert_close(found, prompt * factor)
