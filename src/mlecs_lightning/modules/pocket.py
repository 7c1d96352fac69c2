"""Pocket backbones: small language models trained on this machine, for runs without a hub.

A soft prompt cannot steer a model that has seen only whole sentences. So a pocket model is trained
on (key words, sentence) pairs: the key words take the place of the soft prompt, the sentence that
of the answer. A connector then only has to learn to produce the key words. Our choice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.settings import cache_dir
from mlecs_lightning.storage.files import replacing_folder, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["POCKETS", "PocketRecipe", "is_pocket", "make_pocket", "pocket_coder", "pocket_of"]

_VERSION = 2
"""Increase it whenever the same texts would give different weights."""
_RECORD = "pocket.json"
"""The file of a pocket model with the SHA-256 of all its other files."""
_PATIENCE = 2.0
"""Seconds to wait for another process before saying so."""
_SILENCE = threading.Lock()
"""Held while Lightning is silent: two threads would restore each other's settings."""
_SLOTS = 16
"""Positions for key words: the length of the soft prompt in the reference configuration."""
_POSITIONS = 256
_FILLER, _EOS, _UNKNOWN = "_", "<eos>", "<unk>"


@dataclass(frozen=True)
class PocketRecipe:
    """Size and training of a pocket model.

    Attributes:
        layers: Number of transformer blocks.
        width: Hidden width H.
        heads: Number of attention heads.
        steps: Number of training steps.
        batch_size: Pairs per step.
        learning_rate: Peak learning rate of AdamW (one-cycle schedule).
        seed: Seed of weights and sampling.
    """

    layers: int
    width: int
    heads: int = 4
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


POCKETS = {
    "pocket/xs": PocketRecipe(layers=2, width=64),
    "pocket/slm": PocketRecipe(layers=3, width=96),
    "pocket/llm": PocketRecipe(layers=4, width=128),
}
"""The names that `BackboneSettings.model` accepts besides hub ids and directories."""


def is_pocket(model: str) -> bool:
    """Return whether the name of a backbone is that of a pocket model.

    Raises:
        ValueError: If it starts with ``pocket/`` but is not one.
    """
    if model.startswith("pocket/") and model not in POCKETS:
        raise ValueError(f"backbone.model {model!r}: the pocket models are {sorted(POCKETS)}")
    return model in POCKETS


def pocket_of(directory: str) -> str | None:
    """Return the name of the pocket model in a directory of `make_pocket`; ``None`` for others."""
    path = Path(directory)
    name, _, digest = path.name.rpartition("-")
    is_one = path.parent.name == "pocket" and f"pocket/{name}" in POCKETS and len(digest) == 16
    return f"pocket/{name}" if is_one else None


def make_pocket(model: str, pairs: Sequence[tuple[str, str]], instructions: Sequence[str]) -> Path:
    """Return the directory of a pocket model, and train it if it does not exist yet.

    A model with damaged files is trained again, which takes a minute. If the new one has different
    weights (because it is trained on another kind of CPU), checkpoints of the old one are refused
    by their digests.

    Args:
        model: One of `POCKETS`.
        pairs: (key words, sentence) pairs of the data set.
        instructions: The instructions of the data set, which the model has to know.

    Returns:
        A Hugging Face directory for `from_pretrained`. Its name has a hash of recipe and texts.

    Raises:
        ConfigurationError: If a damaged model cannot be removed.
    """
    recipe = POCKETS[model]
    content = json.dumps([_VERSION, asdict(recipe), sorted(pairs), sorted(set(instructions))])
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    target = cache_dir() / "pocket" / f"{model.rpartition('/')[2]}-{digest}"
    if target.is_dir() and _damage(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target, model):
        if target.is_dir():
            if (damage := _damage(target)) is None:
                return target
            rank_zero_info(f"{model} in {target} is damaged ({damage}): training it again")
            _remove(target, model)
        rank_zero_info(f"training {model} once; it is kept in {target}")
        with replacing_folder(target) as staging:
            with _quiet_lightning(), _progress(model, recipe.steps) as step:
                parts = _train(recipe, sorted(pairs), sorted(set(instructions)), on_step=step)
                for part in parts:
                    part.save_pretrained(staging)
            digests = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
            (staging / _RECORD).write_text(json.dumps(digests, indent=2) + "\n")
    return target


def _damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a pocket model, ``None`` if nothing is."""
    try:
        digests: dict[str, str] = dict(json.loads((folder / _RECORD).read_text()))
        broken = [name for name, digest in digests.items() if sha256_of(folder / name) != digest]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError):
        return f"{_RECORD} cannot be read"
    return f"{', '.join(broken)} has changed" if broken else None


def _remove(folder: Path, model: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ConfigurationError(
            f"backbone.model {model!r}: {str(folder)!r} is damaged and cannot be removed "
            f"({error}): remove it to train the model again"
        ) from error


@contextmanager
def _locked(target: Path, model: str) -> Iterator[None]:
    """Let one process at a time train a model; those that wait say so."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        rank_zero_info(f"waiting for another process to train {model}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(model: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar if stderr is a terminal, on the first rank; yield a step counter."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    left = (TextColumn("steps, left"), TimeRemainingColumn())
    attended = console.is_terminal and getattr(rank_zero_only, "rank", 0) == 0
    with Progress(*columns, *left, console=console, disable=not attended) as bar:
        task = bar.add_task(f"training {model}", total=steps)
        yield lambda: bar.advance(task)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about a training that the user did not start."""
    logger = logging.getLogger("lightning.pytorch")
    with _SILENCE, warnings.catch_warnings():
        level = logger.level
        logger.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def pocket_coder(
    model: str, pairs: Sequence[tuple[str, str]], instructions: Sequence[str]
) -> TextCoder:
    """Return the `TextCoder` of the pocket model for these texts, without training it."""
    return _coder(_tokenizer(pairs, instructions), model)


def _coder(tokenizer: PreTrainedTokenizerBase, model: str = "pocket") -> TextCoder:
    return TextCoder(tokenizer, embedded=len(tokenizer), positions=_POSITIONS, model=model)


def _tokenizer(
    pairs: Sequence[tuple[str, str]], instructions: Sequence[str]
) -> PreTrainedTokenizerBase:
    """Build a word-level tokenizer whose vocabulary is the words of the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [*(text for pair in pairs for text in pair), *instructions]
    own = [_EOS, _UNKNOWN, _FILLER]  # first, so that their ids are fixed even if texts have them
    words = sorted({word for text in texts for word in text.split()} - {*own})
    vocabulary = {w: i for i, w in enumerate([*own, *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words_only, eos_token=_EOS, unk_token=_UNKNOWN, pad_token=_EOS
    )


class _PairModel(L.LightningModule):
    """Predicts the tokens of a sentence after slots with key words and an instruction."""

    def __init__(self, lm: nn.Module, recipe: PocketRecipe) -> None:
        super().__init__()
        self.lm, self.recipe = lm, recipe

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = batch
        logits = self.lm(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits[:, :-1]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rate = self.recipe.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=rate, total_steps=self.recipe.steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random training samples: a pair, with its key words in random slots.

    Sample i depends on i and the seed only.
    """

    def __init__(
        self,
        encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
        instructions: Sequence[Sequence[int]],
        *,
        filler: int,
        eos: int,
        draws: int,
        seed: int,
    ) -> None:
        self.encoded, self.instructions = encoded, instructions
        self.filler, self.eos, self.draws, self.seed = filler, eos, draws, seed
        tails = max(len(sentence) for _, sentence in encoded) + max(
            map(len, instructions), default=0
        )
        self.length = max(_SLOTS, max(len(keys) for keys, _ in encoded)) + tails + 1

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        keys, sentence = self.encoded[draw(len(self.encoded))]
        slots = [self.filler] * max(_SLOTS, len(keys))
        for place, key in zip(torch.randperm(len(slots), generator=generator), keys, strict=False):
            slots[int(place)] = key
        # Half of the samples have no instruction: the model must also work with unknown ones.
        instruction: Sequence[int] = []
        if self.instructions and draw(2):
            instruction = self.instructions[draw(len(self.instructions))]
        head = [*slots, *instruction]
        tokens = [*head, *sentence, self.eos]
        labels = [-100] * len(head) + [*sentence, self.eos]
        pad = self.length - len(tokens)
        return torch.tensor(tokens + [self.eos] * pad), torch.tensor(labels + [-100] * pad)


@contextmanager
def _same_everywhere(seed: int) -> Iterator[None]:
    """Make training depend on the seed only, and restore the caller's random state afterwards.

    Kernels sum in a different order for each number of threads, so one thread is used: every
    machine has to get the same weights. GPUs and their generators are not touched. The instruction
    set of the CPU still matters; digests of the weights detect that.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _train(
    recipe: PocketRecipe,
    pairs: Sequence[tuple[str, str]],
    instructions: Sequence[str],
    *,
    on_step: Callable[[], None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer(pairs, instructions)
    eos: int = tokenizer.eos_token_id
    encode = _coder(tokenizer).encode
    data = _Pairs(
        [(encode(keys), encode(sentence)) for keys, sentence in pairs],
        [encode(text) for text in instructions],
        filler=tokenizer.get_vocab()[_FILLER],
        eos=eos,
        draws=recipe.steps * recipe.batch_size,
        seed=recipe.seed,
    )
    with _same_everywhere(recipe.seed):
        lm = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=_POSITIONS,
                n_layer=recipe.layers,
                n_embd=recipe.width,
                n_head=recipe.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=eos,
                eos_token_id=eos,
                pad_token_id=eos,
            )
        )
        trainer = L.Trainer(
            max_steps=recipe.steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[LambdaCallback(on_train_batch_end=lambda *_: on_step())],
        )
        trainer.fit(_PairModel(lm, recipe), DataLoader(data, batch_size=recipe.batch_size))
    return tokenizer, lm.eval()  # type: ignore[no-untyped-call]
