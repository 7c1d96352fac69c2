"""What became of the files of a manifest while they were read, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mlecs_lightning.data import FederatedDataModule, Manifest
from mlecs_lightning.data.decoding.shapes import Declared

__all__ = ["changes_of_reading", "lengths_of_reading", "short_window"]


def changes_of_reading(data: FederatedDataModule) -> Iterator[str]:
    """Yield for each modality what was done to the channels of how many files."""
    if not isinstance(data, Manifest) or data.inputs is None:
        return
    nouns = {"image": "images", "series": "sounds"}
    for name, declared in data.declared.items():
        total = data.inputs.sources[name].total()
        for change, count in sorted(data.inputs.changes[name].items()):
            yield f"{name}: {count:,} of {total:,} {nouns.get(declared.kind, 'inputs')} {change}"


def lengths_of_reading(
    name: str, declared: Declared, lengths: Counter[tuple[int, int]]
) -> Iterator[str]:
    """Yield how many series were cut off or filled; in seconds where their rate is known.

    Args:
        name: The modality.
        declared: Its form, of kind ``series``.
        lengths: How many series have which length and rate of their own, 0 for none.
    """
    if declared.fit != "last":
        return
    wanted, total = declared.shape[1], lengths.total()
    found = Counter[tuple[float, str]]()
    for (points, rate), count in lengths.items():
        kept = declared.rate or rate
        # As it is after resampling, whose length is rounded up.
        here = -(-points * kept // rate) if rate else points
        seconds = here / kept if kept else 0.0
        if here != wanted:
            found[seconds if kept else here, "longer" if here > wanted else "shorter"] += count
    noun = "sounds" if any(rate for _, rate in lengths) else "series"
    rates = {declared.rate} if declared.rate else {rate for _, rate in lengths}
    window = f"{wanted} points"
    if all(rates):
        times = sorted({wanted / rate for rate in rates if rate})
        window = " to ".join(f"{time:.3g}" for time in dict.fromkeys((times[0], times[-1]))) + " s"
    unit = " s" if all(rates) else " points"
    longer = [size for size, side in found if side == "longer"]
    shorter = [size for size, side in found if side == "shorter"]
    if longer:
        count = sum(n for (_, side), n in found.items() if side == "longer")
        yield (
            f"{name}: of {count:,} of {total:,} {noun} only the last {window} are used; the "
            f"longest has {max(longer):.4g}{unit}"
        )
    if shorter:
        count = sum(n for (_, side), n in found.items() if side == "shorter")
        yield (
            f"{name}: {count:,} of {total:,} {noun} are filled up to {window}; the shortest has "
            f"{min(shorter):.3g}{unit}"
        )


def short_window(name: str, declared: Declared, lengths: Counter[tuple[int, int]]) -> Iterator[str]:
    """Yield that a shape holds less than half of a typical series or text, if it does.

    Args:
        name: The modality.
        declared: Its form, of kind ``series`` or ``text``.
        lengths: How many have which length and rate of their own, 0 for none.
    """
    if declared.fit != "last" or not lengths:
        return
    scaled = sorted(
        points * declared.rate / rate if declared.rate and rate else points
        for points, rate in lengths.elements()
    )
    median, held = scaled[len(scaled) // 2], declared.shape[-1]
    if held >= median / 2:
        return
    unit = "bytes" if declared.kind == "text" else "points"
    resample = ", or use fit: resample" if declared.kind == "series" else ""
    yield (
        f"{name}: its {held:,} {unit} hold less than half of the median length, {median:,.0f}: "
        f"raise data.init_args.modalities.{name}.shape{resample}"
    )
