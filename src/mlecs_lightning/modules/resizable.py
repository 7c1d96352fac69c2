"""Protocol of parts of a model whose tensors change their shapes during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Resizable"]


@runtime_checkable
class Resizable(Protocol):
    """A part that an algorithm shrinks or grows during training, such as the MLPs of a sub-model.

    A `MultimodalLM` calls these methods on each of its submodules that has both of them, so it does
    not depend on the algorithm.
    """

    def fit_to(self, state: Mapping[str, Tensor], *, prefix: str) -> None:
        """Resize to the shapes in a saved state, whose values are loaded afterwards.

        Args:
            state: The trainable state of the whole model, by name.
            prefix: Prefix of the names that belong to this part.
        """

    def form(self) -> dict[str, Any]:
        """Return a description of the present shapes, as JSON values."""
