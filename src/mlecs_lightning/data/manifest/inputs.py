"""The inputs of a manifest's samples, decoded into one tensor for each modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from mlecs_lightning.data.decoding.files import decode_inline
from mlecs_lightning.data.decoding.shapes import Declared, Decoded, DecodeError
from mlecs_lightning.data.manifest.lines import Line
from mlecs_lightning.data.manifest.store import DecodeCache, OutsideRootError, read_below

__all__ = ["Inputs", "decode_inputs"]


@dataclass
class Inputs:
    """What the lines' files and numbers hold.

    Attributes:
        columns: For each modality (N, ...) float32, zero where absent.
        present: (N, K) bool.
        unread: What could not be decoded, one message for each input.
        outside: The paths that lead out of the root, one message each.
        sources: For each modality how many inputs had which shape before they were fitted.
        rates: For each modality how many sounds had which number of points a second.
    """

    columns: dict[str, Tensor]
    present: Tensor
    unread: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    sources: dict[str, Counter[tuple[int, ...]]] = field(default_factory=dict)
    rates: dict[str, Counter[int]] = field(default_factory=dict)


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
        cache: Knows what was decoded before.
        allowed: As in `read_below`.

    Raises:
        ImportError: If a package is missing that a file needs.
    """
    inputs = Inputs(
        columns={m: torch.zeros(len(lines), *d.shape) for m, d in declared.items()},
        present=torch.zeros(len(lines), len(declared), dtype=torch.bool),
        sources={m: Counter() for m in declared},
        rates={m: Counter() for m in declared},
    )
    for row, line in enumerate(lines):
        for k, modality in enumerate(declared):
            if modality not in line.modalities:
                continue
            value = line.modalities[modality]
            what = f"{line.where} (id {line.id!r}), {modality}"
            what += f": {value!r}" if isinstance(value, str) else ""
            try:
                if isinstance(value, str):
                    decoded = _decode(value, line, declared[modality], cache, allowed)
                else:
                    decoded = decode_inline(value, declared[modality])
            except OutsideRootError as error:
                inputs.outside.append(f"{what} {error}")
            except DecodeError as error:
                inputs.unread.append(f"{what} {error}")
            else:
                inputs.columns[modality][row] = torch.from_numpy(decoded.values)
                inputs.present[row, k] = True
                inputs.sources[modality][decoded.source] += 1
                inputs.rates[modality].update([decoded.rate] if decoded.rate else [])
    return inputs


def _decode(
    value: str, line: Line, declared: Declared, cache: DecodeCache, allowed: Sequence[Path]
) -> Decoded:
    suffix = PurePosixPath(value).suffix.lower()
    if declared.kind == "text" and suffix != ".txt":
        raise DecodeError('is no path of a .txt file; a text in the line itself is {"text": "..."}')
    return cache.decode(read_below(line.root, value, allowed=allowed), suffix, declared)
