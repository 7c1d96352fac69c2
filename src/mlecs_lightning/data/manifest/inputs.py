"""Decodes the inputs of a manifest's samples into one tensor for each modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from mlecs_lightning.data.decoding.files import decode_inline
from mlecs_lightning.data.decoding.shapes import Declared, Decoded, DecodeError
from mlecs_lightning.data.manifest.line import Line
from mlecs_lightning.data.manifest.store import (
    DecodeCache,
    Embedded,
    OutsideRootError,
    read_below,
)

__all__ = ["Inputs", "decode_inputs"]


@dataclass
class Inputs:
    """The decoded inputs of N samples with K modalities.

    Attributes:
        columns: (N, ...) float32 for each modality, zero where it is absent.
        present: (N, K) bool, whether a sample has a modality.
        unread: One message for each input that could not be decoded.
        outside: One message for each path that leads out of the root.
        sources: For each modality, how many inputs had which shape before they were resized.
        rates: For each modality, how many sounds had which sampling rate in Hz.
        lengths: For each modality, how many series had which length and sampling rate; the rate is
            0 for files without one.
        changes: For each modality, how many inputs had their channels changed in which way.
    """

    columns: dict[str, Tensor]
    present: Tensor
    unread: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    sources: dict[str, Counter[tuple[int, ...]]] = field(default_factory=dict)
    rates: dict[str, Counter[int]] = field(default_factory=dict)
    lengths: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    changes: dict[str, Counter[str]] = field(default_factory=dict)


def decode_inputs(
    lines: Sequence[Line],
    declared: Mapping[str, Declared],
    cache: DecodeCache,
    *,
    allowed: Sequence[Path] = (),
) -> Inputs:
    """Decode all inputs of all lines.

    Args:
        lines: The samples, length N.
        declared: The K modalities.
        cache: Cache of decoded files.
        allowed: As in `read_below`.

    Raises:
        ImportError: If a package is missing that a file needs.
    """
    inputs = Inputs(
        columns={m: torch.zeros(len(lines), *d.spec.shape) for m, d in declared.items()},
        present=torch.zeros(len(lines), len(declared), dtype=torch.bool),
        sources={m: Counter() for m in declared},
        rates={m: Counter() for m in declared},
        lengths={m: Counter() for m in declared},
        changes={m: Counter() for m in declared},
    )
    for row, line in enumerate(lines):
        for k, modality in enumerate(declared):
            if modality not in line.modalities:
                continue
            value = line.modalities[modality]
            what = f"{line.where} (id {line.id!r}), {modality}"
            what += f": {value!r}" if isinstance(value, str) else ""
            try:
                decoded = _decode(value, line, declared[modality], cache, allowed)
            except OutsideRootError as error:
                inputs.outside.append(f"{what} {error}")
            except DecodeError as error:
                inputs.unread.append(f"{what} {error}")
            else:
                inputs.columns[modality][row] = torch.from_numpy(decoded.values)
                inputs.present[row, k] = True
                inputs.sources[modality][decoded.source] += 1
                inputs.lengths[modality][decoded.source[-1], decoded.rate] += 1
                inputs.changes[modality].update(decoded.changes)
                if decoded.rate:
                    inputs.rates[modality][decoded.rate] += 1
    return inputs


def _decode(
    value: object, line: Line, declared: Declared, cache: DecodeCache, allowed: Sequence[Path]
) -> Decoded:
    if isinstance(value, Embedded):
        return cache.decode(*value.read(), declared)
    if not isinstance(value, str):
        return decode_inline(value, declared)
    suffix = PurePosixPath(value).suffix.lower()
    if declared.kind == "text" and suffix != ".txt":
        raise DecodeError('is not the path of a .txt file; inline text is {"text": "..."}')
    return cache.decode(read_below(line.root, value, allowed=allowed), suffix, declared)
