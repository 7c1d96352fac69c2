"""Texts as tokens and tokens as texts, by the tokenizers of several families."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.texts import Room, TextCoder
from mlecs_lightning.settings import BackboneSettings, LoraSettings

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)
WIDTH, PROMPT, POSITIONS = 32, 3, 160
TEXTS = ["what is the person doing ?", "the person is falling .", "upright", "lying down ."]
ASK, SAY = [TEXTS[0], "", "the person ?"], ["upright .", TEXTS[1], "lying"]

_BYTES = {f"<0x{n:02X}>": n for n in range(256)}
_LETTERS = ["\u2581", *sorted(set("".join(TEXTS)) - {" "})]
_SIZE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
}
# Class of configuration and tokenizer, what is put in front of a text, what stands for the end.
FAMILIES: dict[str, tuple[str, str, list[str], str]] = {
    "gpt2": ("GPT2Config", "GPT2Tokenizer", [], "<|endoftext|>"),
    "qwen2": ("Qwen2Config", "Qwen2Tokenizer", [], "<|endoftext|>"),
    "llama": ("LlamaConfig", "LlamaTokenizer", ["<s>"], "</s>"),
    "gemma": ("GemmaConfig", "GemmaTokenizer", ["<bos>"], "<eos>"),
}
WITH_START = [name for name, (_, _, start, _) in FAMILIES.items() if start]


def byte_level(end: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of GPT-2's kind, learnt from a few sentences."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    learnt.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(learnt.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def sentence_pieces(*special: str) -> dict[str, int]:
    """Return a vocabulary of Llama's kind: letters, and bytes for all others."""
    return {piece: i for i, piece in enumerate([*special, *_BYTES, *_LETTERS])}


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    """Build the family's own tokenizer."""
    import transformers

    _, name, _, end = FAMILIES[family]
    kind = getattr(transformers, name)
    if family in ("gpt2", "qwen2"):
        vocabulary, merges = byte_level(end)
        return kind(vocab=vocabulary, merges=merges)
    special = {"llama": ["<unk>", "<s>", "</s>"], "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"]}
    # As the published models of these families say in their tokenizer_config.json.
    return kind(vocab=sentence_pieces(*special[family]), merges=[], add_bos_token=True)


def words_only(unknown: str | None) -> PreTrainedTokenizerBase:
    """Build a tokenizer of whole words, as a pocket model has."""
    known = dict.fromkeys(["<eos>", "the", "person", "lying", *([unknown] if unknown else [])])
    vocabulary = {word: i for i, word in enumerate(known)}
    model = models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {}))
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token=unknown)


def coder(tokenizer: PreTrainedTokenizerBase, embedded: int = 1000) -> TextCoder:
    return TextCoder(tokenizer, embedded=embedded, positions=None, model="small")


def save(path: Path, family: str, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Write an untrained model of a family and its tokenizer."""
    import transformers

    tokenizer = tokenizer or tokenizer_of(family)
    tokenizer.save_pretrained(path)
    config = getattr(transformers, FAMILIES[family][0])(
        # Wide enough that what a model says depends on what it reads.
        **{**_SIZE, "vocab_size": len(tokenizer), "initializer_range": 0.3},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id),
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Write each family once."""
    made: dict[str, str] = {}

    def call(family: str) -> str:
        if family not in made:
            made[family] = save(tmp_path_factory.mktemp(family), family)
        return made[family]

    return call


@pytest.fixture(scope="module")
def prompt() -> Tensor:
    return torch.randn(len(ASK), PROMPT, WIDTH, generator=torch.Generator().manual_seed(2))


# Encoding -----------------------------------------------------------------------------------------

# What stands in a target, and whether the family can say it.
SPOKEN = {
    "gpt2": ["<|endoftext|>", "the <|endoftext|> person", "<|endoftext|><|endoftext|>"],
    "qwen2": ["<|endoftext|>", "the <|endoftext|> person", "a<|endoftext|>"],
    "llama": ["</s>", "the <s> person </s>", "<unk> is <s>"],
    "gemma": ["<eos>", "the <bos> person <eos>", "<pad><mask>"],
}


@pytest.mark.parametrize(
    ("family", "text"), [(family, text) for family, texts in SPOKEN.items() for text in texts]
)
def test_a_special_token_in_a_text_is_spelt_out(family: str, text: str, tmp_path: Path) -> None:
    tokenizer_of(family).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(save(tmp_path, family))
    own = coder(loaded)
    assert set(loaded(text, add_special_tokens=False)["input_ids"]) & {*loaded.all_special_ids}
    assert not set(own.encode(text)) & {*loaded.all_special_ids}
    assert own.survives(text)
    # The tokenizer itself is as it was.
    again = loaded(text, add_special_tokens=False)["input_ids"]
    assert set(again) & {*loaded.all_special_ids}


@pytest.mark.parametrize(
    ("unknown", "text", "spelt"),
    [
        ("<unk>", "the <eos> person", ["the", "<unk>", "person"]),
        ("<unk>", "<eos>", ["<unk>"]),
        ("<unk>", "lying <unk> down", ["lying", "<unk>", "<unk>"]),
        (None, "the <eos> person", ["the", "person"]),
        # Unknown words would be the end of the sentence.
        ("<eos>", "the old person <eos>", ["the", "person"]),
    ],
)
def test_a_vocabulary_of_words_never_makes_the_stop_token_of_a_text(
    unknown: str | None, text: str, spelt: list[str]
) -> None:
    tokenizer = words_only(unknown)
    own = coder(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(own.encode(text))) == spelt
    assert own.end not in own.encode(text)
    assert not own.survives(text)
    assert own.survives("the  person lying")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_only_stop_token_of_a_target_is_its_end(
    family: str, folder: Callable[[str], str], prompt: Tensor
) -> None:
    backbone = Backbone(BackboneSettings(folder(family)), LORA).eval()
    end = FAMILIES[family][3]
    says = [f"{end} upright", f"the {end} person", "lying"]
    labels = backbone(prompt, [end] * 3, says).labels
    stop = backbone.tokenizer.eos_token_id
    for row in labels:
        spoken = row[row >= 0].tolist()
        assert spoken.index(stop) == len(spoken) - 1
    # What is asked is data, too.
    assert stop not in backbone.coder.encode(end)


def test_texts_without_special_tokens_are_encoded_as_the_tokenizer_does() -> None:
    for family in FAMILIES:
        tokenizer = tokenizer_of(family)
        for text in [*TEXTS, "", "fällt 倒 <b>", "a\nb  c"]:
            plain = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert list(coder(tokenizer).encode(text)) == plain


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("text", ["is he up ?", "he 's up .", "no , he is n't !"])
def test_blanks_before_full_stops_stay_whatever_the_tokenizer_s_settings(
    text: str, clean: bool
) -> None:
    vocabulary = {w: i for i, w in enumerate(["<eos>", *sorted(set(text.split()))])}
    words = Tokenizer(models.WordLevel(vocabulary))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", clean_up_tokenization_spaces=clean
    )
    assert coder(tokenizer).survives(text)


# The beginning of a sequence ----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_what_the_family_puts_before_a_text(family: str) -> None:
    tokenizer = tokenizer_of(family)
    expected = tuple(tokenizer.convert_tokens_to_ids(FAMILIES[family][2]))
    assert coder(tokenizer).start == expected
    assert len(expected) == (family in WITH_START)


@pytest.mark.parametrize("family", WITH_START)
def test_a_tokenizer_that_is_told_to_add_no_start_adds_none(family: str) -> None:
    kind = type(tokenizer_of(family))
    vocabulary = tokenizer_of(family).get_vocab()
    assert coder(kind(vocab=vocabulary, merges=[], add_bos_token=False)).start == ()
    ends = kind(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=True)
    assert coder(ends).start == (ends.bos_token_id,)


def embedded(model: PreTrainedModel, family: str, prompt: Tensor, tokens: list[int]) -> Tensor:
    """Return [start ; S ; tokens] (1, L, H) as the model embeds them, by hand.

    Gemma multiplies the embeddings of its tokens by the root of its width.
    """
    scale = prompt.shape[-1] ** 0.5 if family == "gemma" else 1.0
    start = AutoTokenizer.from_pretrained(model.name_or_path).convert_tokens_to_ids(
        FAMILIES[family][2]
    )
    embed = model.get_input_embeddings()
    parts = [embed(torch.tensor([start], dtype=torch.long)), scale * prompt[None]]
    return torch.cat([*parts, embed(torch.tensor([tokens], dtype=torch.long))], dim=1)


def greedy(path: str, family: str, prompt: Tensor, ask: str, steps: int) -> str:
    """Say the likeliest token, append it, read all again: transformers alone, no `generate`."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = list(tokenizer(ask, add_special_tokens=False)["input_ids"])
    said: list[int] = []
    while len(said) < steps:
        logits = model(inputs_embeds=embedded(model, family, prompt, tokens + said)).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == tokenizer.eos_token_id:
            break
    return " ".join(tokenizer.decode(said, skip_special_tokens=True).split())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loss_view_and_answers_are_those_of_a_sequence_with_its_start(
    family: str, folder: Callable[[str], str], prompt: Tensor
) -> None:
    path = folder(family)
    if (
        family == "gemma"
    ):  # small, as a connector's are: beside a large one, nothing else would count
        prompt = prompt / prompt.shape[-1] ** 0.5
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    backbone = Backbone(BackboneSettings(path), LORA).eval()  # a fresh adapter changes nothing
    start, sums, counts, views = len(FAMILIES[family][2]), [], [], []
    for row, ask, say in zip(prompt, ASK, SAY, strict=True):
        head = tokenizer(ask, add_special_tokens=False)["input_ids"]
        tail = [*tokenizer(say, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        sequence = embedded(model, family, row, [*head, *tail])
        labels = torch.tensor([[-100] * (start + PROMPT + len(head)) + tail])
        out = model(inputs_embeds=sequence, labels=labels, output_hidden_states=True)
        sums.append(float(out.loss) * len(tail))
        counts.append(len(tail))
        views.append(out.hidden_states[-1][0, start : start + PROMPT].mean(dim=0))
    output = backbone(prompt, ASK, SAY)
    assert float(output.loss) == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    torch.testing.assert_close(output.prompt_hidden, torch.stack(views), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        backbone.read_prompt(prompt), torch.stack(views), atol=1e-4, rtol=1e-4
    )
    answers = backbone.generate(prompt, ASK, max_new_tokens=5)
    assert answers == [greedy(path, family, p, ask, 5) for p, ask in zip(prompt, ASK, strict=True)]
    assert len(set(answers)) == len(ASK), "answers that do not depend on what is read show nothing"


# Answers are greedy -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(folder: Callable[[str], str], prompt: Tensor) -> list[int]:
    """The first tokens that the GPT-2 says to the first prompt, all unlike."""
    path, said = folder("gpt2"), list[int]()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = AutoTokenizer.from_pretrained(path)(ASK[0])["input_ids"]
    with torch.no_grad():
        for _ in range(3):
            logits = model(inputs_embeds=embedded(model, "gpt2", prompt[0], tokens + said)).logits
            said.append(int(logits[0, -1].argmax()))
    assert len(set(said)) == 3
    return said


@pytest.fixture(scope="module")
def ending(spoken: list[int], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same GPT-2, whose first answer ends with its third token."""
    tokenizer = tokenizer_of("gpt2")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(spoken[2])
    return save(tmp_path_factory.mktemp("ending"), "gpt2", tokenizer)


@pytest.fixture(scope="module")
def plain(ending: str, prompt: Tensor) -> list[str]:
    """The greedy answers of the model that nothing is said about."""
    with torch.no_grad():
        return [greedy(ending, "gpt2", p, ask, 8) for p, ask in zip(prompt, ASK, strict=True)]


# What the folder of a model may say of how it is to be sampled; FIRST is the token said first.
FIRST = -1
SAMPLED: dict[str, dict[str, Any]] = {
    "suppress_tokens": {"suppress_tokens": [FIRST]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [FIRST]},
    "bad_words_ids": {"bad_words_ids": [[FIRST]]},
    "sequence_bias": {"sequence_bias": [[[FIRST], -50.0]]},
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 5},
    "min_new_tokens": {"min_new_tokens": 8},
    "min_length": {"min_length": 200},
    "repetition_penalty": {"repetition_penalty": 20.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 30.0]},
    "num_return_sequences": {"num_beams": 2, "num_return_sequences": 2},
    "return_dict_in_generate": {"return_dict_in_generate": True, "output_scores": True},
    "stop_strings": {"stop_strings": ["e", "a", " "]},
    "guidance_scale": {"guidance_scale": 5.0},
    # These stand against what we ask for ourselves.
    "num_beams": {"num_beams": 4, "length_penalty": 3.0, "early_stopping": True},
    "do_sample": {"do_sample": True, "temperature": 30.0, "top_k": 0},
    "eos_token_id": {"eos_token_id": [FIRST]},
    "max_new_tokens": {"max_new_tokens": 1},
}


def with_first(value: Any, first: int) -> Any:  # noqa: ANN401 - as JSON has it
    """Put the token that is said first in its place."""
    if isinstance(value, list):
        return [with_first(each, first) for each in value]
    return first if value == FIRST else value


def saying(key: str, source: str, target: Path, first: int) -> Backbone:
    """Copy a model into a folder that says how it is to be sampled, and load it."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    said = {name: with_first(value, first) for name, value in SAMPLED[key].items()}
    (target / "generation_config.json").write_text(json.dumps(said))
    return Backbone(BackboneSettings(str(target)), LORA).eval()


@pytest.mark.parametrize("key", SAMPLED)
def test_answers_are_greedy_whatever_the_model_s_folder_says_of_sampling(
    key: str, ending: str, spoken: list[int], prompt: Tensor, plain: list[str], tmp_path: Path
) -> None:
    backbone = saying(key, ending, tmp_path, spoken[0])
    assert backbone.generate(prompt, ASK, max_new_tokens=8) == plain


@pytest.mark.parametrize("key", ["repetition_penalty", "min_new_tokens", "return_dict_in_generate"])
def test_int8_answers_are_greedy_too(
    key: str, ending: str, spoken: list[int], prompt: Tensor, tmp_path: Path
) -> None:
    answers = []
    for backbone in (
        Backbone(BackboneSettings(ending), LORA).eval(),
        saying(key, ending, tmp_path, spoken[0]),
    ):
        with backbone.in_int8():
            answers.append(backbone.generate(prompt, ASK, max_new_tokens=8))
    assert answers[0] == answers[1]


# Length -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_longer_than_the_model_can_read_is_refused_in_words(
    family: str, folder: Callable[[str], str], prompt: Tensor
) -> None:
    backbone = Backbone(BackboneSettings(folder(family)), LORA).eval()
    room = Room(backbone.coder, PROMPT, answer=4)
    assert room.needed("", "") == len(backbone.coder.start) + PROMPT + 4 + 1
    letters = room.asked()
    assert letters is not None
    # One letter is one token, behind the blank that Llama puts in front.
    blank = len(backbone.coder.encode("z")) - 1
    long, answer = "z" * (letters - blank), "z" * (4 - blank)
    # Nothing is generated behind an answer, so one more letter fits there, and two do not.
    fits, over = [f"{long}z"] * 3, [f"{long}zz"] * 3
    assert len(backbone.generate(prompt, fits, max_new_tokens=4)) == 3
    with pytest.raises(ValueError, match=rf"max_new_tokens needs {POSITIONS + 1} .*{POSITIONS}"):
        backbone.generate(prompt, over, max_new_tokens=4)
    assert room.needed(long, answer) == room.needed(long, "") == POSITIONS
    assert room.needed(long, f"{answer}z") == room.needed(f"{long}z", answer) == POSITIONS + 1
    # An answer of the maximum length can be read again, with its end.
    assert len(backbone(prompt, [long] * 3, [answer] * 3).logits) == 3
    with pytest.raises(ValueError, match=rf"target needs {POSITIONS + 1} .*{POSITIONS}: shorten"):
        backbone(prompt, fits, [answer] * 3)
