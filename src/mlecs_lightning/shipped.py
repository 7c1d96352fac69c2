"""The configurations that come with the package, by name."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["configs", "shipped_config", "shipped_configs"]

_PACKAGE = Path(__file__).resolve().parent
# In a wheel the folder is part of the package; in a checkout it stands at the top.
_PLACES = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")


def shipped_configs() -> dict[str, Path]:
    """Return the ready configurations: name (``quickstart``, ``urfall/mlecs``) and file."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        return {}
    files = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def shipped_config(name: str) -> Path | None:
    """Return the file of a ready configuration; ``None`` if there is none of this name."""
    return shipped_configs().get(name)


def configs(words: Sequence[str]) -> int:
    """Run ``configs [NAME] [--copy DIR]``.

    Args:
        words: The words after ``configs``.

    Returns:
        0; 1 if there is no such configuration, or it cannot be copied.
    """
    parser = argparse.ArgumentParser(
        prog="mlecs configs",
        allow_abbrev=False,
        description="List the ready configurations, print one, or copy it to edit it. "
        "`--config NAME` takes one by its name.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="print this configuration")
    parser.add_argument(
        "--copy", metavar="DIR", type=Path, help="copy NAME, or all, into this folder"
    )
    given = parser.parse_args(words)
    known = shipped_configs()
    if given.name is not None and given.name not in known:
        print(
            f"error: there is no configuration {given.name!r}; known are {', '.join(known)}",
            file=sys.stderr,
        )
        return 1
    chosen = known if given.name is None else {given.name: known[given.name]}
    if given.copy is not None:
        return _copy(chosen, given.copy)
    if given.name is not None:
        print(known[given.name].read_text(encoding="utf-8"), end="")
        return 0
    width = max(map(len, known), default=0)
    for name, path in known.items():
        print(f"{name:<{width}}  {_about(path)}")
    return 0


def _about(path: Path) -> str:
    """Return the first sentence of a configuration's head comment."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence, _, _ = " ".join(comment).partition(". ")
    return sentence.partition(" python cli.py")[0].partition(": ")[0].rstrip(".")


def _copy(chosen: dict[str, Path], folder: Path) -> int:
    """Copy configurations; refuse to overwrite a file."""
    targets = {folder / f"{name}.yaml": path for name, path in chosen.items()}
    existing = [str(target) for target in targets if target.exists()]
    if existing:
        print(f"error: --copy: these files exist: {', '.join(existing)}", file=sys.stderr)
        return 1
    try:
        for target, path in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            print(target)
    except OSError as error:
        print(f"error: --copy: {error}", file=sys.stderr)
        return 1
    return 0
