"""What of a model is named and not stored, known by its content.

A checkpoint holds what trains. The frozen rest it names: a pocket model, a directory, a hub id; and
one name can stand for other weights on another machine, or tomorrow. An adapter over other weights
than those that it was trained with says something else, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REMEDY", "Contents", "content_faults", "content_header"]

Contents = Mapping[str, Mapping[str, str]]
"""For each frozen part, such as ``towers.slm.backbone``, its name ``model`` and, for each of
``weights``, ``config``, ``tokenizer`` and ``preparation`` that it has, the SHA-256."""

REMEDY = (
    "copy the very same files here (pocket models lie in the folder pocket of MLECS_CACHE), or "
    "name a directory that holds them; another version of transformers or tokenizers can read the "
    "same files in another way"
)

_SHOWN = 16
"""Digits of a digest in a message; 64 bits tell any two apart."""


def content_faults(one: Contents, other: Contents, *, names: tuple[str, str]) -> list[str]:
    """Return what differs between the frozen parts of two models, a line for each digest.

    Parts and digests that only one of them has are none of a difference in content.

    Args:
        one: The parts of a model.
        other: Those of the same model elsewhere.
        names: What the two are called, for the message.
    """
    return [
        f"{part}: backbone or encoder {here['model']!r}: its {kind} has sha256 "
        f"{there[kind][:_SHOWN]} {names[0]} and {here[kind][:_SHOWN]} {names[1]}"
        for part, there in one.items()
        for here in ([other[part]] if part in other else [])
        for kind in sorted((there.keys() & here.keys()) - {"model"})
        if there[kind] != here[kind]
    ]


def content_header(contents: Contents) -> str:
    """Return the digests as comments for the head of a ``config.yaml``, one line for each model.

    Comments: keys would have to be options of ``fit``, which reads the file again.
    """
    lines = {
        f"# {content['model']}: "
        + ", ".join(f"{kind} {digest}" for kind, digest in content.items() if kind != "model")
        for content in contents.values()
    }
    return "\n".join(["# sha256 of the frozen models that this names:", *sorted(lines), ""])
