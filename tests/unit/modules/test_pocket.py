import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from mlecs_lightning.data import Digits
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import pocket
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


@pytest.mark.parametrize("word", ["<eos>", "<unk>", "_"])
def test_a_word_of_the_texts_takes_the_place_of_no_special_token(word: str, make: Make) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make([("bold", f"a {word} seven .")], [word]))
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[w] for w in ("<eos>", "<unk>", "_")] == [0, 1, 2]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.eos_token_id == 0


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


# Large enough that kernels share their sums among threads.
WIDE = replace(MICRO, width=64, batch_size=16)
MAKE_WIDE = f"""
from mlecs_lightning.modules import pocket
from mlecs_lightning.modules.pocket import POCKETS, PocketRecipe, make_pocket
POCKETS["pocket/slm"] = {WIDE!r}
make_pocket("pocket/slm", {PAIRS!r}, {ASK!r})
"""


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_threads_changes_no_bit_and_is_left_alone(
    make: Make, threads: None, tmp_path: Path, count: int
) -> None:
    torch.set_num_threads(1)
    alone = make(recipe=WIDE, cache="alone")
    torch.set_num_threads(count)
    assert weights(make(recipe=WIDE)) == weights(alone)
    assert torch.get_num_threads() == count


@pytest.mark.slow
def test_a_fresh_process_with_two_threads_makes_the_same(
    make: Make, threads: None, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    here = make(recipe=WIDE)
    there = {**os.environ, "MLECS_CACHE": str(tmp_path / "there"), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", MAKE_WIDE], env=there, check=True, capture_output=True)
    for name in ("model.safetensors", "tokenizer.json", "pocket.json"):
        made = tmp_path / "there" / "pocket" / here.name / name
        assert made.read_bytes() == (here / name).read_bytes()


def states() -> tuple[object, list[int], list[int]]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_training_leaves_the_generators_of_the_caller_alone(make: Make) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(123)  # a state that no training ends in
    before = states()
    make()
    assert states() == before


# Damaged ------------------------------------------------------------------------------------------


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


class Lines(logging.Handler):
    """What is said on the first rank; whether pytest hears of it depends on who imports first."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    logger, lines = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Lines()
    logger.addHandler(lines)
    yield lines.messages
    logger.removeHandler(lines)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: flip(path / "model.safetensors"),
            "model.safetensors has changed",
        ),
        (lambda path: os.truncate(path / "model.safetensors", 500), "model.safetensors has"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: flip(path / "tokenizer.json", 100), "tokenizer.json has changed"),
        (lambda path: (path / "pocket.json").write_text("[1, 2"), "pocket.json cannot be read"),
        (lambda path: (path / "pocket.json").write_text("[1, 2]"), "pocket.json cannot be read"),
        (lambda path: (path / "pocket.json").unlink(), "pocket.json is missing"),
    ],
)
def test_a_damaged_model_is_made_again_with_one_line(
    make: Make, said: list[str], damage: Callable[[Path], object], message: str
) -> None:
    path = make()
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    damage(path)
    said.clear()
    assert make() == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    lines = [line for line in said if "is damaged (" in line]
    assert lines == [said[0]]
    assert f"pocket/slm in {path} is damaged ({message}" in lines[0]
    said.clear()
    make()
    assert said == []


def test_a_damaged_model_that_cannot_be_removed_is_refused(make: Make, tmp_path: Path) -> None:
    path = make()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert make() == path
    flip(tmp_path / "elsewhere" / "model.safetensors")
    with pytest.raises(ConfigurationError, match=rf"pocket/slm'.*{path.name}.*damaged.*remove it"):
        make()
    assert path.is_symlink()


# Progress -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "terminal"), [(0, True), (0, False), (1, True)])
def test_progress_is_shown_on_a_terminal_by_the_first_rank(
    make: Make,
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    terminal: bool,
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    path = make()
    assert said == [f"training pocket/slm once; it is kept in {path}"] * (rank == 0)
    drawn = capsys.readouterr().err
    shown = rank == 0 and terminal
    assert (re.search(r"training pocket/slm.*3/3.* left .*0:00:00", drawn) is not None) == shown
    assert ("training pocket/slm" in drawn) == shown


def test_who_waits_for_another_process_says_so(
    make: Make, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make()
    said.clear()
    flip(path / "config.json")
    monkeypatch.setattr(pocket, "_PATIENCE", 0.1)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(f"{path}.lock"):
            waiting = pool.submit(make)
            while not said and not waiting.done():
                time.sleep(0.01)
        assert waiting.result() == path
    assert said[0] == "waiting for another process to train pocket/slm"


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
