"""Hints for error messages: which names a user could have written."""

from __future__ import annotations

import re
from difflib import get_close_matches
from inspect import isabstract, isclass

from jsonargparse import ArgumentParser, Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlecs_lightning import algorithms
from mlecs_lightning.class_paths import import_class
from mlecs_lightning.data import FederatedDataModule, Schedule
from mlecs_lightning.lazy import import_all
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.wire import Codec

__all__ = ["innermost", "known_names"]

# jsonargparse, and the hints below, know a class by its bare name once it has been imported.
import_all(algorithms)

_BASES: dict[str, type] = {
    "data": FederatedDataModule,
    "algorithm": Algorithm,
    "schedule": Schedule,
    "codec": Codec,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
_REFUSAL = re.compile(r"Problem with given class_path '(.+)':\n((?: {6,}.*\n)+)")
_CLASS_PATH = r"class_path[= ]'([\w.]+)'"


def innermost(error: BaseException) -> str:
    """Return the message of a class about its arguments, without that of jsonargparse around it."""
    while error.__cause__ and str(error).startswith("Does not validate"):
        # Of a key that takes several types: the class that was named says more than the others.
        if refusal := _REFUSAL.search(str(error)):
            return f"{refusal[1]}: {refusal[2].strip()}"
        error = error.__cause__
    return str(error)


def known_names(message: str, *, defaults: Namespace) -> str:
    """Return the known names for a name that jsonargparse does not know.

    Args:
        message: The message of jsonargparse.
        defaults: All keys.

    Returns:
        A text to append to the message; empty if the message is about something else.
    """
    names: list[str] = []
    hint = ""
    if key := re.search(r"(?:accept option '|unrecognized arguments: --)([\w.]+)", message):
        siblings = defaults.get(key[1].rpartition(".")[0], defaults)
        names = list(vars(siblings)) if isinstance(siblings, Namespace) else []
        every = list(defaults.keys(branches=True))
        longer = [known for known in every if known.startswith(key[1])]
        near = longer or get_close_matches(key[1], every, n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
    elif re.search(
        r"Expected a <class 'str'>(?s:.*)(class '(bool|int|float)'>|value: [TFN\d])", message
    ):
        hint = "; quote a word that YAML reads as another type"
    elif "is not accepted" in message and (paths := re.findall(_CLASS_PATH, message)):
        refused = import_class({"class_path": paths[-1]}, home="builtins", key="class_path")
        names = ArgumentParser().add_class_arguments(refused) if isclass(refused) else []
    elif re.search("import path|No module|no attribute|is abstract|subclass of", message):
        *_, kind = re.findall(r'Parser key "(?:\w+\.)*(\w+)"', message) or [""]
        names = sorted(_subclass_names(_BASES[kind])) if kind in _BASES else []
    return hint + (f"\n  known: {names}" if names else "")


def _subclass_names(base: type) -> set[str]:
    """Return the class names that jsonargparse accepts without their module."""
    names: set[str] = set()
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        names |= _subclass_names(kind)
        ours = kind.__module__.startswith(("mlecs_lightning", "torch.optim"))
        if ours and not isabstract(kind):
            names.add(kind.__name__)
    return names
