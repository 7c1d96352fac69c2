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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.copying import Words
from mlecs_lightning.modules.pocket_training import (
    PocketRecipe,
    pocket_coder,
    train,
    train_to_copy,
)
from mlecs_lightning.settings import cache_dir
from mlecs_lightning.storage.files import replacing_folder, sha256_of

__all__ = [
    "COPYING",
    "POCKETS",
    "PocketRecipe",
    "is_pocket",
    "make_pocket",
    "pocket_coder",
    "pocket_of",
]

_VERSION = 2
_COPYING_VERSION = 2
"""Increase them whenever the same texts would give different weights; one is of `COPYING` alone."""
_RECORD = "pocket.json"
"""The file of a pocket model with the SHA-256 of all its other files."""
_PATIENCE = 2.0
"""Seconds to wait for another process before saying so."""
_SILENCE = threading.Lock()
"""Held while Lightning is silent: two threads would restore each other's settings."""


POCKETS = {
    "pocket/xs": PocketRecipe(layers=2, width=64),
    "pocket/slm": PocketRecipe(layers=3, width=96),
    "pocket/llm": PocketRecipe(layers=4, width=128),
}
"""The names that `BackboneSettings.model` accepts besides hub ids and directories."""


COPYING = {
    "pocket/xs": PocketRecipe(layers=4, width=64, steps=800, batch_size=16, learning_rate=4e-3),
    "pocket/slm": PocketRecipe(layers=4, width=96, steps=800, batch_size=16, learning_rate=4e-3),
    "pocket/llm": PocketRecipe(layers=4, width=128, steps=800, batch_size=16, learning_rate=4e-3),
}
"""The same for data with texts that are read as tokens: see `mlecs_lightning.modules.copying`."""


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


def make_pocket(
    model: str,
    pairs: Sequence[tuple[str, str]],
    instructions: Sequence[str],
    words: Words | None = None,
) -> Path:
    """Return the directory of a pocket model, and train it if it does not exist yet.

    A model with damaged files is trained again, which takes a minute. If the new one has different
    weights (because it is trained on another kind of CPU), checkpoints of the old one are refused
    by their digests.

    Args:
        model: One of `POCKETS`.
        pairs: (key words, sentence) pairs of the data set.
        instructions: The instructions of the data set, which the model has to know.
        words: For a model that reads texts as tokens, what it learns to copy from; the pairs are
            not used then.

    Returns:
        A Hugging Face directory for `from_pretrained`. Its name has a hash of recipe and texts.

    Raises:
        ConfigurationError: If a damaged model cannot be removed.
    """
    recipe = POCKETS[model] if words is None else COPYING[model]
    texts: list[Any] = [sorted(pairs)] if words is None else [_COPYING_VERSION, *words.content()]
    content = json.dumps([_VERSION, asdict(recipe), *texts, sorted(set(instructions))])
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
                asked = sorted(set(instructions))
                parts = (
                    train(recipe, sorted(pairs), asked, on_step=step)
                    if words is None
                    else train_to_copy(recipe, words, asked, on_step=step)
                )
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
