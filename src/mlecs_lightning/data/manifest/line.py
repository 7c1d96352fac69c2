"""One line of a manifest, as it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["UNNAMED", "Line", "Split"]

Split = Literal["public", "train", "val", "test"]

UNNAMED = "unnamed"
"""The domain of samples that name neither client nor domain."""


@dataclass(frozen=True)
class Line:
    """One sample as the manifest describes it.

    Attributes:
        where: File and line number, for messages.
        root: Folder that paths are relative to.
        id: Unique across all manifests.
        split: The split that it belongs to.
        owner: Whether it names a ``client`` or a ``domain``; ``None`` for neither.
        domain: The client or domain that it names, or `UNNAMED`.
        group: The recording that it is cut from.
        modalities: A path or inline numbers for each modality that it has.
        instruction: The question to the model; ``None`` for that of the data set.
        targets: The reference sentences; empty if the line is for `predict` only.
        has_split: Whether the line has a split; one without is of split train until it is drawn.
    """

    where: str
    root: Path
    id: str
    split: Split
    owner: Literal["client", "domain"] | None
    domain: str
    group: str
    modalities: dict[str, Any]
    instruction: str | None
    targets: tuple[str, ...]
    has_split: bool = True
