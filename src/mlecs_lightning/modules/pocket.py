"""Pocket backbones: language models made on this machine in seconds, for runs without a hub.

A soft prompt cannot steer a model that has only ever seen whole sentences. So a pocket model learns
"key words => sentence": the key words stand where the soft prompt will stand, the sentence where
the answer will. Then a connector only has to learn to produce the key words. Our choice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
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
"""Raise it whenever the same texts would give other weights."""
_RECORD = "pocket.json"
"""The file of a pocket model that holds the SHA-256 of all its others."""
_PATIENCE = 2.0
"""Seconds in which another process may look at a model without a word about it."""
_SLOTS = 16
"""Positions of the key words: the reference length of the soft prompt."""
_POSITIONS = 256
_FILLER, _EOS, _UNKNOWN = "_", "<eos>", "<unk>"


@dataclass(frozen=True)
class PocketRecipe:
    """Size and training of a pocket model.

    Attributes:
        layers: Transformer blocks.
        width: Hidden width H.
        heads: Attention heads.
        steps: Training steps.
        batch_size: Pairs of a step.
        learning_rate: Peak rate of AdamW (one-cycle schedule).
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
"""The names that `BackboneSettings.model` accepts beside hub ids and directories."""


def is_pocket(model: str) -> bool:
    """Return whether a backbone's name asks for a pocket model.

    Raises:
        ValueError: If it starts with ``pocket/`` but is none.
    """
    if model.startswith("pocket/") and model not in POCKETS:
        raise ValueError(f"backbone.model {model!r}: the pocket models are {sorted(POCKETS)}")
    return model in POCKETS


def pocket_of(directory: str) -> str | None:
    """Return which pocket model a directory holds that `make_pocket` returned, on any machine."""
    path = Path(directory)
    name, _, digest = path.name.rpartition("-")
    is_one = path.parent.name == "pocket" and f"pocket/{name}" in POCKETS and len(digest) == 16
    return f"pocket/{name}" if is_one else None


def make_pocket(model: str, pairs: Sequence[tuple[str, str]], instructions: Sequence[str]) -> Path:
    """Return the directory of a pocket model, training it if nobody has yet.

    A model whose files are no longer those that were written is made again: it costs a minute, and
    everything that it takes is here. Where the new one has other weights (made on another kind of
    CPU), checkpoints of the old one are refused by their digests.

    Args:
        model: One of `POCKETS`.
        pairs: "key words => sentence" pairs of the data set.
        instructions: What the model will be asked, for its vocabulary and its place in the
            sequence.

    Returns:
        An ordinary Hugging Face directory, for `from_pretrained`. It is keyed by the whole recipe,
        texts included, written to a temporary name and renamed.

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
            rank_zero_info(f"{model} in {target} is damaged ({damage}): it is made again")
            _remove(target, model)
        rank_zero_info(f"training {model}, once: it is kept in {target}")
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
        return f"there is no {Path(error.filename).name}"
    except (OSError, ValueError, TypeError):
        return f"{_RECORD} cannot be read"
    return f"{', '.join(broken)} is not what was written" if broken else None


def _remove(folder: Path, model: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ConfigurationError(
            f"backbone.model {model!r}: {str(folder)!r} is damaged and cannot be removed "
            f"({error}): remove it, and it is made again"
        ) from error


@contextmanager
def _locked(target: Path, model: str) -> Iterator[None]:
    """Let one process make a model; those that have to wait say so."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        rank_zero_info(f"another process trains {model}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(model: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show steps and the time that is left on a terminal, on the first rank; yield what counts."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    left = (TextColumn("steps, left"), TimeRemainingColumn())
    attended = console.is_terminal and getattr(rank_zero_only, "rank", 0) == 0
    with Progress(*columns, *left, console=console, disable=not attended) as bar:
        task = bar.add_task(f"training {model}", total=steps)
        yield lambda: bar.advance(task)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep back what Lightning has to say of a training that is none of the user's."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def pocket_coder(
    model: str, pairs: Sequence[tuple[str, str]], instructions: Sequence[str]
) -> TextCoder:
    """Return the tokenizer that `make_pocket` gives a model of these texts, training nothing."""
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
    own = [_EOS, _UNKNOWN, _FILLER]  # their numbers stay, should a text have one as a word
    words = sorted({word for text in texts for word in text.split()} - {*own})
    vocabulary = {w: i for i, w in enumerate([*own, *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words_only, eos_token=_EOS, unk_token=_UNKNOWN, pad_token=_EOS
    )


class _PairModel(L.LightningModule):
    """Next-token prediction of the sentence after slots with key words and an instruction."""

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
    """Draw number i is a function of i: a pair, with its key words strewn over the slots."""

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
        # Half of the draws have no instruction: the model must hold for any other one, too.
        spoken = (
            self.instructions[draw(len(self.instructions))] if self.instructions and draw(2) else []
        )
        head = [*slots, *spoken]
        tokens = [*head, *sentence, self.eos]
        labels = [-100] * len(head) + [*sentence, self.eos]
        pad = self.length - len(tokens)
        return torch.tensor(tokens + [self.eos] * pad), torch.tensor(labels + [-100] * pad)


@contextmanager
def _same_everywhere(seed: int) -> Iterator[None]:
    """Make training a function of the seed alone, and leave the caller's settings as they were.

    With one thread: kernels sum in another order with each number of threads, and every machine
    that makes a model has to get the same weights. GPUs are left alone, their generators too. What
    remains is the CPU's instruction set, which only a comparison of the weights can tell.
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
