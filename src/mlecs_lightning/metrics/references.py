"""Targets that know further sentences that would have been as right."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ReferencedText", "references_of"]


class ReferencedText(str):
    """The target sentence of a sample, with all its reference sentences.

    It is the string that a model trains on, so that whatever handles a target handles this one; the
    metrics ask it for the others. Our choice: the references then go wherever the target goes, and
    none of the layers between data and metrics has to know of them.

    Attributes:
        references: All references of the sample, this sentence among them.
    """

    references: tuple[str, ...]

    def __new__(cls, text: str, references: Sequence[str]) -> ReferencedText:
        """Build from the sentence to train on and all references.

        Raises:
            ValueError: If the sentence is none of them.
        """
        if text not in references:
            raise ValueError(f"the target {text!r} is none of its references {list(references)}")
        self = super().__new__(cls, text)
        self.references = tuple(references)
        return self

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]
        """Return what pickle needs: worker processes and other ranks get copies."""
        return str(self), self.references


def references_of(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the references of a target: several, or the one that a plain string is.

    Example:
        >>> references_of("a cat ."), references_of(ReferencedText("a", ["a", "b"]))
        (('a cat .',), ('a', 'b'))
    """
    if isinstance(target, ReferencedText):
        return target.references
    return (target,) if isinstance(target, str) else tuple(target)
