import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlecs_lightning.data import Digits
from mlecs_lightning.modules.pocket import POCKETS, PocketRecipe, is_pocket, make_pocket
from mlecs_lightning.settings import BackboneSettings

PAIRS = [("red big", "a big red one ."), ("blue", "a blue one ."), ("red", "a red one .")]
ASK = ["what is it ?", "say it ."]
MICRO = PocketRecipe(layers=1, width=16, heads=2, steps=3, batch_size=4)

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return `make_pocket` with a recipe of three steps and a cache of its own."""

    def build(
        pairs: list[tuple[str, str]] = PAIRS,
        instructions: list[str] = ASK,
        *,
        recipe: PocketRecipe = MICRO,
        cache: str = "cache",
    ) -> Path:
        monkeypatch.setitem(POCKETS, "pocket/slm", recipe)
        monkeypatch.setenv("MLECS_CACHE", str(tmp_path / cache))
        return make_pocket("pocket/slm", pairs, instructions)

    return build


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


# Made once ----------------------------------------------------------------------------------------


def test_model_is_made_once(make: Make) -> None:
    path = make()
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert make() == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_order_and_repetition_of_the_texts_do_not_matter(make: Make) -> None:
    assert make(PAIRS[::-1], [*ASK[::-1], *ASK]) == make()


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": replace(MICRO, steps=4)},
        {"recipe": replace(MICRO, seed=1)},
        {"instructions": ASK[:1]},
        {"pairs": PAIRS[:2]},
        {"pairs": [*PAIRS[:2], ("red", "a red one !")]},
    ],
)
def test_other_recipe_or_texts_make_another_model(make: Make, changed: dict[str, object]) -> None:
    path, other = make(), make(**changed)
    assert path != other
    assert path.name.startswith("slm-")
    assert other.is_dir()
    assert weights(path) != weights(other)


def test_remains_of_a_killed_process_are_no_obstacle(make: Make) -> None:
    path = make()
    home = path.parent
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    staging = home / "tmp_killed"
    staging.mkdir()
    (staging / "config.json").write_text("{")
    assert (home / f"{path.name}.lock").exists()
    assert make() == path
    assert len(weights(path)) > 1000


def test_model_that_could_not_be_saved_leaves_nothing_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2LMHeadModel

    def fail(self: object, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(GPT2LMHeadModel, "save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            make()
    path = make()
    assert [p.name for p in sorted(path.parent.iterdir())] == [path.name, f"{path.name}.lock"]


def test_two_that_want_it_at_once_share_one_model(make: Make) -> None:
    start = threading.Barrier(2)

    def wait_and_make(_: int) -> Path:
        start.wait()
        return make()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(wait_and_make, range(2))
    assert first == second
    assert len(list(first.parent.iterdir())) == 2, "the model and its lock"


# Reproducible -------------------------------------------------------------------------------------


def test_two_trainings_give_the_same_bits(make: Make) -> None:
    torch.manual_seed(1)
    first = make(cache="one")
    torch.manual_seed(2)
    second = make(cache="two")
    assert first != second
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def states() -> tuple[object, list[int], list[int]]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_training_leaves_the_generators_of_the_caller_alone(make: Make) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(123)  # a state that no training ends in
    before = states()
    make()
    assert states() == before


# What comes out -----------------------------------------------------------------------------------


def test_directory_is_an_ordinary_one_of_hugging_face(make: Make) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = make()
    lm, tokenizer = (c.from_pretrained(path) for c in (AutoModelForCausalLM, AutoTokenizer))
    words = {w for pair in PAIRS for text in pair for w in text.split()} | set(
        " ".join(ASK).split()
    )
    assert set(tokenizer.get_vocab()) == words | {"<eos>", "<unk>", "_"}
    assert lm.config.vocab_size == len(tokenizer) == lm.get_input_embeddings().num_embeddings
    assert lm.config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert (lm.config.n_layer, lm.config.n_embd, lm.config.n_head) == (1, 16, 2)
    assert tokenizer.decode(tokenizer("a big red one .")["input_ids"]) == "a big red one ."
    assert tokenizer("a purple one .")["input_ids"][1] == tokenizer.unk_token_id


@pytest.mark.parametrize("ask", ["describe the digit .", ""])
@pytest.mark.parametrize("pocket", ["slm", "llm"])
def test_pocket_model_turns_key_words_into_the_sentence(
    pockets: dict[str, str], digits: Digits, pocket: str, ask: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm, tokenizer = (
        c.from_pretrained(pockets[pocket]) for c in (AutoModelForCausalLM, AutoTokenizer)
    )
    pairs = digits.pretraining_pairs()
    generator = torch.Generator().manual_seed(1)
    heads = []
    for keys, _ in pairs:
        slots = ["_"] * 16
        for place, key in zip(torch.randperm(16, generator=generator), keys.split(), strict=False):
            slots[place] = key
        heads.append(" ".join([*slots, *ask.split()]))
    tokens = tokenizer(heads, return_tensors="pt")["input_ids"]
    answers = lm.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )[:, tokens.shape[1] :]
    said = [" ".join(t.split()) for t in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    right = sum(text == sentence for text, (_, sentence) in zip(said, pairs, strict=True))
    # Both say all 240 on three instruction sets and with four seeds of the weights, so without a
    # spread; a model that misreads one fact in ten says 73 %.
    assert right >= 0.9 * len(pairs)


def test_pocket_names(make: Make) -> None:
    assert [is_pocket(name) for name in (*POCKETS, "gpt2", "./pocket/slm")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert is_pocket(BackboneSettings().model), "the default needs no hub"
    with pytest.raises(ValueError, match=r"'pocket/xl': the pocket models are \['pocket/llm', "):
        is_pocket("pocket/xl")
