"""Targets with several equally good reference sentences."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ReferencedText", "references_of"]


class ReferencedText(str):
    """The target sentence of a sample, with all its reference sentences.

    It is the string that a model trains on, and metrics also use its references. Our choice: the
    references go wherever the target goes, so the layers between data and metrics need not handle
    them.

    Attributes:
        references: All references of the sample, including this sentence.
    """

    references: tuple[str, ...]

    def __new__(cls, text: str, references: Sequence[str]) -> ReferencedText:
        """Build from the sentence to train on and all references.

        Raises:
            ValueError: If the sentence is not one of the references.
        """
        if text not in references:
            raise ValueError(f"the target {text!r} is not one of its references {list(references)}")
        self = super().__new__(cls, text)
        self.references = tuple(references)
        return self

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]
        """Return the arguments for pickle, which copies targets to worker processes and ranks."""
        return str(self), self.references


def references_of(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the references of a target; a plain string is its own only reference.

    Example:
        >>> references_of("a cat ."), references_of(ReferencedText("a", ["a", "b"]))
        (('a cat .',), ('a', 'b'))
    """
    if isinstance(target, ReferencedText):
        return target.references
    return (target,) if isinstance(target, str) else tuple(target)
