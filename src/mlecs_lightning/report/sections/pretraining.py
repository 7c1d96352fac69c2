"""What the pocket models of some runs had seen before round 0."""

from __future__ import annotations

from mlecs_lightning.report.parts import Cell, Column, Grid, Section, Setting

__all__ = ["pretraining"]

_SEEN = {
    "public": "targets of public samples",
    "other": "words of public targets, in alphabetical order",
    "targets": "all sentences that a target can be",
}


def pretraining(setting: Setting) -> Section | None:
    """List the pocket models and what they were pretrained on, where summaries say it."""
    found: dict[tuple[str, str, str, str], None] = {}
    for row in setting.rows:
        for model, seen in row.summary.get("pretraining", {}).items():
            what = _SEEN.get(seen["samples"], seen["samples"])
            if seen["kind"] == "copying":
                what = (
                    f"to copy, from targets and {', '.join(seen['modalities'])} of public samples"
                )
                if seen.get("examples"):
                    what += f", {seen['examples']:,} of them with other words"
            found[row.algorithm, model, what, f"{seen['sentences']:,}"] = None
    if not found:
        return None
    columns = [*(Column(name, text=True) for name in ("algorithm", "model", "has learnt"))]
    columns.append(Column("distinct sentences"))
    note = "Trained on this machine before round 0, on no sample of a client."
    return Section(
        "Pocket models", note, grids=[Grid(columns, [list(map(Cell, r)) for r in found])]
    )
