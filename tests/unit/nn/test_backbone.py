import copy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.frozen import fuse_activations
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings, LoraSettings

LORA = LoraSettings(r=4, alpha=16, dropout=0.0)
# Instructions and targets of unlike lengths, so that every row is padded in its own way.
ASK = ["describe the digit .", "the digit .", "describe the digit ."]
SAY = ["a bold seven with more ink above .", "a light two", "nine"]


def randomise(backbone: Backbone) -> Backbone:
    """Give B values as well: a fresh adapter changes nothing."""
    generator = torch.Generator().manual_seed(5)
    state = backbone.adapter_state()
    backbone.load_adapter_state(
        {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in state.items()}
    )
    return backbone


def build(model_dir: str, lora: LoraSettings = LORA) -> Backbone:
    torch.manual_seed(0)
    return randomise(Backbone(BackboneSettings(model_dir), lora)).eval()


@pytest.fixture(scope="module")
def backbone(model_dir: str) -> Backbone:
    """Return a backbone that no test may change."""
    return build(model_dir)


@pytest.fixture
def own(model_dir: str) -> Backbone:
    """Return a backbone that a test may change."""
    return build(model_dir)


def words(backbone: Backbone, *texts: str) -> Tensor:
    """Return the embeddings (B, P, H) of texts of equal length: prompts with a meaning."""
    tokens = torch.tensor([backbone.tokenizer(text)["input_ids"] for text in texts])
    return backbone.lm.get_input_embeddings()(tokens).detach()


@pytest.fixture(scope="module")
def prompt(backbone: Backbone) -> Tensor:
    filler = "_ _ _ _ _ _"
    return words(
        backbone,
        f"bold _ {filler} seven above",
        f"two {filler} _ light above",
        f"_ {filler} nine below bold",
    )


# Sharing ------------------------------------------------------------------------------------------


def test_backbones_share_the_frozen_tensors_and_not_the_adapters(model_dir: str) -> None:
    first, second = build(model_dir), build(model_dir, replace(LORA, r=2))
    model, _ = load_frozen(BackboneSettings(model_dir))
    places = {name: p.data_ptr() for name, p in [*model.named_parameters(), *model.named_buffers()]}
    for backbone in (first, second):
        frozen = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): p
            for name, p in [*backbone.lm.named_parameters(), *backbone.lm.named_buffers()]
            if ".lora_" not in name
        }
        assert {name: p.data_ptr() for name, p in frozen.items()} == places
        assert not any(p.requires_grad for p in frozen.values())
    mine, other = (
        {p.data_ptr() for n, p in b.lm.named_parameters() if ".lora_" in n} for b in (first, second)
    )
    assert mine
    assert not mine & (other | set(places.values()))


def test_loaded_model_stays_plain_and_as_it_was(model_dir: str) -> None:
    model, _ = load_frozen(BackboneSettings(model_dir))
    config = copy.deepcopy(model.config.to_dict())
    backbone = build(model_dir)
    backbone.lm.train()
    assert not any(".lora_" in name for name, _ in model.named_parameters())
    assert model.config.to_dict() == config
    assert not model.training


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "silu"])
def test_activation_of_one_kernel_is_the_same_function(name: str) -> None:
    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, activation_function=name
    )
    model = GPT2LMHeadModel(config).double().eval()
    tokens = torch.arange(8).unsqueeze(0)
    before = model(tokens).logits
    fuse_activations(model)
    kinds = {type(block.mlp.act) for block in model.transformer.h}
    assert kinds == ({nn.GELU} if name != "silu" else {type(ACT2FN["silu"])})
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-12, atol=1e-12)


def test_training_one_backbone_leaves_the_answers_of_another(model_dir: str) -> None:
    first, second = build(model_dir), build(model_dir)
    prompt = words(first, *["bold seven above"] * 3)
    before = second(prompt, ASK, SAY).loss
    optimizer = torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=1.0)
    first(prompt, ASK, SAY).loss.backward()
    optimizer.step()
    assert second(prompt, ASK, SAY).loss == before != first(prompt, ASK, SAY).loss


# Adapter ------------------------------------------------------------------------------------------


def test_adapter_state_is_that_of_peft(backbone: Backbone) -> None:
    from peft import get_peft_model_state_dict

    theirs, ours = get_peft_model_state_dict(backbone.lm), backbone.adapter_state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_adapter_has_the_rank_and_the_layers_asked_for(model_dir: str) -> None:
    name = (
        "c_proj"
        if load_frozen(BackboneSettings(model_dir))[0].config.model_type == "gpt2"
        else ("o_proj")
    )
    backbone = build(model_dir, replace(LORA, r=3, target_modules=[name]))
    state = backbone.adapter_state()
    assert state
    assert all(f".{name}.lora_" in key for key in state)
    assert {v.shape[0 if ".lora_A." in k else 1] for k, v in state.items()} == {3}
    assert backbone.scaling == 16 / 3


def test_adapter_state_is_a_copy(own: Backbone) -> None:
    state = own.adapter_state()
    kept = {k: v.clone() for k, v in state.items()}
    own.load_adapter_state({k: v + 1 for k, v in state.items()})
    assert all(torch.equal(state[k], kept[k]) for k in state)
    assert all(torch.equal(own.adapter_state()[k], kept[k] + 1) for k in state)


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_received_adapter_is_mixed_with_the_present_one(own: Backbone, mix: float) -> None:
    before = own.adapter_state()
    received = {k: torch.full_like(v, 3.0) for k, v in before.items()}
    own.load_adapter_state(received, mix=mix)
    for key, value in own.adapter_state().items():
        torch.testing.assert_close(value, mix * 3.0 + (1 - mix) * before[key])


def test_part_of_an_adapter_leaves_the_rest(own: Backbone) -> None:
    before = own.adapter_state()
    key = next(iter(before))
    own.load_adapter_state({key: torch.zeros_like(before[key])})
    after = own.adapter_state()
    assert not after[key].any()
    assert all(torch.equal(after[k], before[k]) for k in before if k != key)


def test_state_that_does_not_fit_is_refused_and_nothing_is_written(own: Backbone) -> None:
    before = own.adapter_state()
    first, *_, last = before
    good = {first: torch.zeros_like(before[first])}
    with pytest.raises(KeyError, match=r"the adapter has no tensor 'lora_C'"):
        own.load_adapter_state({**good, "lora_C": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected shape \(\d+, \d+\), got \(1, 1\)") as caught:
        own.load_adapter_state({**good, last: torch.zeros(1, 1)})
    assert last in str(caught.value)
    assert torch.equal(own.adapter_state()[first], before[first])


def test_frozen_a_neither_trains_nor_travels(own: Backbone) -> None:
    both = own.adapter_state()
    assert own.trains_a()
    own.freeze_a()
    assert not own.trains_a()
    only_b = own.adapter_state()
    assert set(only_b) == {key for key in both if ".lora_B." in key}
    own(words(own, *["two above"] * 3), ASK, SAY).loss.backward()
    gradients = {n: p.grad for n, p in own.named_parameters() if ".lora_" in n}
    assert {".lora_B." in n for n, g in gradients.items() if g is not None} == {True}
    # What another backbone sends still goes in, A as well.
    own.load_adapter_state(both)


def test_no_layer_to_adapt_is_an_error(model_dir: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lora\.target_modules.*nowhere"):
        Backbone(BackboneSettings(model_dir), replace(LORA, target_modules=["nowhere"]))


# Loss ---------------------------------------------------------------------------------------------


def by_hand(backbone: Backbone, model_dir: str, prompt: Tensor) -> tuple[list[float], list[int]]:
    """Return the summed target loss and the target count of each sample, by Hugging Face alone."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fan_in_fan_out of GPT-2
        lm = get_peft_model(plain, LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM")).eval()
    set_peft_model_state_dict(lm, backbone.adapter_state())
    sums, counts = [], []
    for row, ask, say in zip(prompt, ASK, SAY, strict=True):
        head = tokenizer(ask)["input_ids"]
        tail = [*tokenizer(say)["input_ids"], tokenizer.eos_token_id]
        embedded = lm.get_input_embeddings()(torch.tensor([head + tail]))
        labels = [-100] * (len(row) + len(head)) + tail
        out = lm(inputs_embeds=torch.cat([row[None], embedded], 1), labels=torch.tensor([labels]))
        sums.append(float(out.loss.detach()) * len(tail))
        counts.append(len(tail))
    return sums, counts


def test_loss_is_hugging_face_s_own_over_the_target_tokens(
    backbone: Backbone, model_dir: str, prompt: Tensor
) -> None:
    sums, counts = by_hand(backbone, model_dir, prompt)
    assert counts == [9, 4, 2]
    out = backbone(prompt, ASK, SAY)
    assert float(out.loss.detach()) == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    for i in range(3):
        alone = backbone(prompt[i : i + 1], ASK[i : i + 1], SAY[i : i + 1]).loss
        assert float(alone.detach()) == pytest.approx(sums[i] / counts[i], rel=1e-5)
    each = nn.functional.cross_entropy(
        out.logits.transpose(1, 2), out.labels, ignore_index=-100, reduction="none"
    ).sum(1)
    assert each.tolist() == pytest.approx(sums, rel=1e-4)


def test_labels_are_the_target_and_the_end_of_sequence(backbone: Backbone, prompt: Tensor) -> None:
    out = backbone(prompt, ASK, SAY)
    assert out.logits.shape[:2] == out.labels.shape
    eos = backbone.tokenizer.eos_token_id
    for row, say in zip(out.labels, SAY, strict=True):
        assert row[row != -100].tolist() == [*backbone.tokenizer(say)["input_ids"], eos]


@pytest.mark.parametrize("ask", [["", "", ""], ["", "the digit .", ""]])
def test_instruction_may_be_empty(backbone: Backbone, prompt: Tensor, ask: list[str]) -> None:
    out = backbone(prompt, ask, SAY)
    alone = backbone(prompt[:1], [""], SAY[:1])
    torch.testing.assert_close(out.logits[0, out.labels[0] != -100], alone.logits[0])
    single = backbone.generate(prompt[:1], [""], max_new_tokens=8)
    assert backbone.generate(prompt, ask, max_new_tokens=8)[:1] == single


@pytest.mark.parametrize("unknown", [(1,), (0, 2), (0,)])
def test_loss_is_that_of_the_samples_with_a_known_target(
    backbone: Backbone, prompt: Tensor, unknown: tuple[int, ...]
) -> None:
    say = ["" if n in unknown else text for n, text in enumerate(SAY)]
    rest = [n for n in range(len(SAY)) if n not in unknown]
    alone = backbone(prompt[rest], [ASK[n] for n in rest], [SAY[n] for n in rest])
    output = backbone(prompt, ASK, say)
    torch.testing.assert_close(output.loss, alone.loss)
    spoken = (output.labels >= 0).any(dim=1)
    assert [n for n in range(len(SAY)) if not spoken[n]] == list(unknown)


def test_batch_without_any_known_target_has_no_loss_and_no_gradient(
    own: Backbone, prompt: Tensor
) -> None:
    output = own(prompt.clone().requires_grad_(), ASK, [""] * len(ASK))
    assert output.loss.item() == 0.0
    output.loss.backward()
    gradients = [p.grad for p in own.adapter_parameters().values()]
    assert all(g is not None and not g.any() for g in gradients), "zero, not missing: DDP waits"


def test_probability_of_a_target_is_the_product_over_its_tokens(
    backbone: Backbone, prompt: Tensor
) -> None:
    told = backbone(prompt, ASK, [*SAY[:2], ""]).log_probability()
    for n in range(2):
        output = backbone(prompt[[n]], [ASK[n]], [SAY[n]])
        tokens = int((output.labels >= 0).sum())
        torch.testing.assert_close(told[n], -output.loss * tokens, atol=1e-4, rtol=1e-4)
    assert told[2] == 0.0


def test_gradient_reaches_prompt_and_adapter_alone(own: Backbone, prompt: Tensor) -> None:
    soft = prompt.clone().requires_grad_()
    own(soft, ASK, SAY).loss.backward()
    assert soft.grad is not None
    assert soft.grad.flatten(1).any(dim=1).all()
    learned = {name for name, p in own.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {name for name, _ in own.named_parameters() if ".lora_" in name}


def test_hidden_state_of_the_prompt_is_read_with_and_without_text(
    backbone: Backbone, prompt: Tensor
) -> None:
    hidden = backbone(prompt, ASK, SAY).prompt_hidden
    assert hidden.shape == (3, backbone.hidden_size)
    torch.testing.assert_close(backbone.read_prompt(prompt), hidden, atol=1e-5, rtol=1e-4)
    whole = backbone.lm(inputs_embeds=prompt, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, whole.mean(dim=1), atol=1e-5, rtol=1e-4)


# Answers ------------------------------------------------------------------------------------------


def greedy(backbone: Backbone, prompt: Tensor, ask: str, *, steps: int) -> str:
    """Say word by word what `forward` holds most likely."""
    said: list[str] = []
    for step in range(steps):
        logits = backbone(prompt[None], [ask], [" ".join(said) or "_"]).logits[0]
        token = int(logits[step].argmax())
        if token == backbone.tokenizer.eos_token_id:
            break
        said.append(backbone.tokenizer.decode([token]))
    return " ".join(word for word in said if word != backbone.tokenizer.unk_token)


def test_generation_is_greedy_and_padding_does_not_change_it(
    backbone: Backbone, prompt: Tensor
) -> None:
    together = backbone.generate(prompt, ASK, max_new_tokens=10)
    alone = [
        backbone.generate(p[None], [ask], max_new_tokens=10)[0]
        for p, ask in zip(prompt, ASK, strict=True)
    ]
    by_forward = [greedy(backbone, p, ask, steps=10) for p, ask in zip(prompt, ASK, strict=True)]
    assert together == alone == by_forward
    assert len(set(together)) > 1, "answers that do not depend on what is read show nothing"
    assert backbone.generate(prompt, ASK, max_new_tokens=2) == [
        greedy(backbone, p, ask, steps=2) for p, ask in zip(prompt, ASK, strict=True)
    ]


def test_pocket_model_says_the_sentence_of_its_key_words(gpt2_dir: str) -> None:
    backbone = Backbone(BackboneSettings(gpt2_dir), LORA).eval()
    prompt = words(
        backbone, "bold " + "_ " * 13 + "seven above", "below two " + "_ " * 13 + "light"
    )
    assert backbone.generate(prompt, [ASK[0], ""], max_new_tokens=12) == [
        "a bold seven with more ink above .",
        "a light two with more ink below .",
    ]


# Families, precisions, tokenizers -----------------------------------------------------------------


def test_gradient_of_the_adapter_is_that_of_finite_differences(
    own: Backbone, prompt: Tensor
) -> None:
    """Along the gradient the loss rises by ||g||^2 times the step."""
    trained = [p for p in own.parameters() if p.requires_grad]
    own(prompt, ASK, SAY).loss.backward()
    gradient = [p.grad for p in trained if p.grad is not None]
    assert len(gradient) == len(trained)
    size = float(sum(g.double().square().sum() for g in gradient))
    step, losses = 0.01 / size, []  # the loss moves by 0.01, far above its rounding
    with torch.no_grad():
        for way in (1, -2):
            for parameter, g in zip(trained, gradient, strict=True):
                parameter += way * step * g
            losses.append(float(own(prompt, ASK, SAY).loss))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_storage(
    backbone: Backbone, model_dir: str, prompt: Tensor, autocast: bool
) -> None:
    half = Backbone(BackboneSettings(model_dir, dtype="bfloat16"), LORA).eval()
    half.load_adapter_state(backbone.adapter_state())
    dtypes = {".lora_" in name: p.dtype for name, p in half.named_parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = half(prompt, ASK, SAY)
        hidden = half.read_prompt(prompt)
    full = backbone(prompt, ASK, SAY)
    assert float(out.loss.detach()) == pytest.approx(float(full.loss.detach()), rel=0.03)
    assert hidden.dtype == out.prompt_hidden.dtype == out.loss.dtype == torch.float32
    exact = full.prompt_hidden.detach()
    assert float((hidden.detach() - exact).norm() / exact.norm()) < 0.05
    out.loss.backward()
    gradients = [p.grad for p in half.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and g.any() for g in gradients)


def altered_tokenizer(model_dir: str, path: Path, **tokens: None) -> str:
    """Copy a model with a tokenizer that lacks some special tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, **tokens)
    tokenizer.save_pretrained(path)
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(path)
    return str(path)


def test_tokenizer_without_a_padding_token_serves(
    backbone: Backbone, model_dir: str, prompt: Tensor, tmp_path: Path
) -> None:
    bare = Backbone(BackboneSettings(altered_tokenizer(model_dir, tmp_path, pad_token=None)), LORA)
    assert bare.tokenizer.pad_token_id is None
    bare.eval().load_adapter_state(backbone.adapter_state())
    assert torch.equal(bare(prompt, ASK, SAY).loss, backbone(prompt, ASK, SAY).loss)
    answers = bare.generate(prompt, ASK, max_new_tokens=6)
    assert answers == backbone.generate(prompt, ASK, max_new_tokens=6)


def test_tokenizer_without_an_end_of_sequence_is_refused(gpt2_dir: str, tmp_path: Path) -> None:
    path = altered_tokenizer(gpt2_dir, tmp_path, eos_token=None)
    with pytest.raises(ConfigurationError, match=r"backbone\.model .* no end-of-sequence token"):
        Backbone(BackboneSettings(path), LORA)


@pytest.mark.parametrize("model", ["no/such-model", "/no/such/folder"])
def test_model_that_cannot_be_loaded_is_named(model: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^backbone\.model '{model}': "):
        load_frozen(BackboneSettings(model))


def test_attention_implementation_is_passed_on(model_dir: str, prompt: Tensor) -> None:
    settings = BackboneSettings(model_dir, attn_implementation="eager")
    eager = randomise(Backbone(settings, LORA)).eval()
    assert eager.lm.config._attn_implementation == "eager"
    other = build(model_dir)
    assert other.lm.config._attn_implementation == "sdpa"
    torch.testing.assert_close(
        eager(prompt, ASK, SAY).loss, other(prompt, ASK, SAY).loss, atol=1e-5, rtol=1e-4
    )


# The adapter that stays -----------------------------------------------------------------------


def test_a_second_adapter_adds_up_trains_and_does_not_travel(
    model_dir: str, prompt: Tensor
) -> None:
    torch.manual_seed(0)
    one = Backbone(BackboneSettings(model_dir), LoraSettings(r=2, alpha=4, dropout=0.0))
    torch.manual_seed(0)
    two = Backbone(BackboneSettings(model_dir), LoraSettings(2, 4, 0.0, private_r=3))
    assert two.adapter_state().keys() == one.adapter_state().keys()
    own = {k: p for k, p in two.lm.named_parameters() if ".private." in k}
    assert own
    assert {p.shape[0] for k, p in own.items() if "lora_A" in k} == {3}
    assert all(p.requires_grad for p in [*own.values(), *two.adapter_parameters().values()])
    assert not set(own) & two.frozen_names()
    two.load_adapter_state(one.adapter_state())
    ask, answer = ["say"] * len(prompt), ["yes"] * len(prompt)
    # B starts at zero: nothing is added yet. Then alpha / r B A of each, at the same scale of 2.
    torch.testing.assert_close(two(prompt, ask, answer).loss, one(prompt, ask, answer).loss)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.randn_like(parameter))
            if name.endswith("lora_B.private.weight"):
                a = own[name.replace("lora_B", "lora_A")]
                layer = two.lm.get_submodule(name.removesuffix(".lora_B.private.weight"))
                added = layer.get_delta_weight("private")
                expected = 2.0 * parameter @ a
                # GPT-2 keeps transposed weights.
                torch.testing.assert_close(added, expected.T if layer.fan_in_fan_out else expected)
    assert not torch.allclose(two(prompt, ask, answer).loss, one(prompt, ask, answer).loss)
    two(prompt, ask, answer).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())


def test_the_rank_of_the_second_adapter_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="private_r not negative"):
        LoraSettings(private_r=-1)
    with pytest.raises(ConfigurationError, match=r"lora\.scope 'per_stage'.*set lora\.private_r"):
        LoraSettings(scope="per_stage")
