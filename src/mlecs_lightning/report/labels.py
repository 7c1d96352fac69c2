"""Words and numbers as a reader sees them, the same in the terminal, on the page, in Markdown."""

from __future__ import annotations

__all__ = ["NOTHING", "SCORES", "VIEWS", "heading", "seeds", "size"]

NOTHING = "n/a"
"""In the place of a number that there is none of: 0 would be a result."""

SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "rouge_lsum": "Rouge-Lsum",
    "bertscore": "BERTScore",
}
"""Scores of a party, as they are named in summary.json and for people."""

VIEWS = {
    "mean.all": "clients, all",
    "mean.own": "clients, own",
    "worst.all": "worst client, all",
    "worst.own": "worst client, own",
    "server": "server",
}
"""Whose scores: a path in summary.json (``worst`` is made of ``clients``), and for people."""

_OTHERS = {
    "communication.uplink_bytes": "bytes up",
    "communication.downlink_bytes": "bytes down",
    "communication.ratio_of_edge_parameters.uplink": "up / edge model",
    "communication.ratio_of_edge_parameters.downlink": "down / edge model",
    "communication.ratio_of_server_parameters.uplink": "up / server model",
    "communication.ratio_of_server_parameters.downlink": "down / server model",
    "privacy.epsilon": "epsilon",
    "seconds": "seconds",
}


def heading(metric: str) -> str:
    """Return how a table names a metric; see `mlecs_lightning.report.results.matrix.value`.

    Example:
        >>> heading("mean.all.macro_f1"), heading("communication.uplink_bytes")
        ('clients, all: macro-F1', 'bytes up')
    """
    view, _, score = metric.rpartition(".")
    if view in VIEWS:
        return f"{VIEWS[view]}: {SCORES.get(score, score)}"
    return _OTHERS.get(metric, metric)


def size(count: float) -> str:
    """Return bytes in a unit that reads well, with three digits; decimal units.

    Example:
        >>> size(999), size(60_448), size(1.5e9)
        ('999 B', '60.4 kB', '1.5 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.5:  # what is not, would be rounded to 1e+03
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"


def seeds(count: int) -> str:
    """Return a number of seeds, of which one is too few to tell a difference from chance.

    Example:
        >>> seeds(5), seeds(1)
        ('5', '1 seed, no spread')
    """
    return "1 seed, no spread" if count == 1 else str(count)
