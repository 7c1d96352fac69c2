"""Digests of the frozen parts of a model, which checkpoints name but do not store.

A checkpoint stores the trainable tensors and names the frozen models: a pocket model, a directory
or a hub id. The same name may stand for other weights on another machine or at another time, and an
adapter on top of other weights gives wrong answers without any error. So digests are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REMEDY", "Contents", "content_faults", "content_header"]

Contents = Mapping[str, Mapping[str, str]]
"""For each frozen part, such as ``towers.slm.backbone``, its name (``model``) and the SHA-256 of
its ``weights``, ``config``, ``tokenizer`` and ``preparation``, as far as it has them."""

REMEDY = (
    "copy the same files here (pocket models are in the folder pocket of MLECS_CACHE), or name a "
    "directory that has them; another version of transformers or tokenizers may read the same "
    "files differently"
)

_SHOWN = 16
"""Hexadecimal digits of a digest in a message: 64 bits."""


def content_faults(one: Contents, other: Contents, *, names: tuple[str, str]) -> list[str]:
    """Compare the frozen parts of two models, and return a message for each digest that differs.

    Parts and digests that only one of the two has are ignored.

    Args:
        one: The frozen parts of a model.
        other: Those of the same model elsewhere.
        names: Where the two are, for the messages.
    """
    faults = []
    for part in (part for part in one if part in other):
        there, here = one[part], other[part]
        for kind in sorted((there.keys() & here.keys()) - {"model"}):
            if there[kind] != here[kind]:
                faults.append(
                    f"{part}: backbone or encoder {here['model']!r}: its {kind} has sha256 "
                    f"{there[kind][:_SHOWN]} {names[0]} and {here[kind][:_SHOWN]} {names[1]}"
                )
    return faults


def content_header(contents: Contents) -> str:
    """Return the digests as comments for the top of a ``config.yaml``, one line for each model.

    They are comments because ``fit`` reads the file again and has no options for them.
    """
    lines = set()
    for content in contents.values():
        digests = (f"{kind} {digest}" for kind, digest in content.items() if kind != "model")
        lines.add(f"# {content['model']}: {', '.join(digests)}")
    return "\n".join(["# sha256 of the frozen models that this names:", *sorted(lines), ""])
