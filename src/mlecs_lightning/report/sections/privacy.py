"""The section of a report on differential privacy."""

from __future__ import annotations

from collections.abc import Mapping

from mlecs_lightning.report.labels import NOTHING
from mlecs_lightning.report.parts import Cell, Column, Grid, Section, Setting

__all__ = ["privacy"]

_VALUES = ("epsilon", "epsilon_server", "delta", "noise_multiplier", "clip", "sampling_rate")
_WORDS = {"where": "noise by", "secure_noise": "noise from"}


def privacy(setting: Setting) -> Section | None:
    """Show the privacy loss of each run that has counted one; ``None`` if none has."""
    rows = []
    for row in setting.rows:
        found = row.summary.get("privacy")
        if isinstance(found, Mapping):
            told = [_number(found.get(name)) for name in _VALUES]
            origin = "entropy" if found.get("secure_noise") else "seed"
            words = [str(found.get("where", NOTHING)), origin]
            rows.append(
                [Cell(str(x)) for x in (row.algorithm, row.seed, row.rounds, *told, *words)]
            )
    if not rows:
        return None
    names = ["algorithm", "seed", "rounds", *_VALUES, *_WORDS.values()]
    columns = [Column(n, text=n in ("algorithm", *_WORDS.values())) for n in names]
    note = (
        "Client-level differential privacy of the models that clients and server share: epsilon "
        "at this delta after all rounds. epsilon_server holds against the server itself, which "
        "sees what each device sends. Scores, and this report, are not covered. Noise from the "
        "seed is for research: who knows the seed can subtract it. See docs/privacy.md."
    )
    return Section("Privacy", note, grids=[Grid(columns, rows)])


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else NOTHING
