"""Parts of a model whose tensors change their shape from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Resizable"]


@runtime_checkable
class Resizable(Protocol):
    """A part that an algorithm cuts and grows while it trains, such as a sub-model's MLPs.

    A `MultimodalLM` finds its own by these two methods, so that it need not know the algorithm.
    """

    def fit_to(self, state: Mapping[str, Tensor], *, prefix: str) -> None:
        """Take the shape that a state was saved with, before its values are written.

        Args:
            state: Tensors by their names in the whole model.
            prefix: What the names of this part's tensors begin with.
        """

    def form(self) -> dict[str, Any]:
        """Return what the present shape is, as JSON."""
