"""What the scores of a run say in plain sentences: the fault, its cause and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlecs_lightning.report.labels import SCORES

__all__ = ["remarks"]

# Those that a constant sentence can be good at; a macro-F1 of one is near zero.
_COMPARED = ("accuracy", "rouge_lsum")
# Share of the answers, and how many times the share among the true targets.
_OFTEN, _MORE = 0.5, 2


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the answers of a run, if anything is.

    Args:
        summary: What `FederatedTrainer.fit` or `test` returned.
    """
    checks = summary.get("checks", {})
    scores = {name: client["all"] for name, client in summary["clients"].items()}
    scores["server"] = summary["server"]
    return [*_below_constant(scores, checks), *_repeated(checks)]


def _below_constant(
    scores: Mapping[str, Mapping[str, float]], checks: Mapping[str, Any]
) -> Iterator[str]:
    for metric in _COMPARED:
        below = [
            f"{party!r} ({row[metric]:.3f} < {constant[metric]:.3f})"
            for party, row in scores.items()
            if metric in row
            and metric in (constant := checks.get(party, {}).get("constant", {}))
            and row[metric] < constant[metric]
        ]
        if below:
            yield (
                f"{SCORES[metric]} is below that of one fixed answer to all samples: "
                f"{_some(below)}. "
                "Their answers do not follow from their inputs: train longer "
                "(algorithm.init_args.steps, trainer.max_rounds), and see what `data check` says "
                "of their inputs"
            )


def _repeated(checks: Mapping[str, Any]) -> Iterator[str]:
    found = []
    for party, check in checks.items():
        shares = check.get("repeated", {"answers": 0.0, "targets": 0.0})
        if shares["answers"] >= max(_OFTEN, _MORE * shares["targets"]):
            found.append(f"{party!r} ({shares['answers']:.0%}, {shares['targets']:.0%})")
    if found:
        yield (
            "Answers are training sentences word for word, far more often than the true targets "
            f"are (share of answers, of targets): {_some(found)}. These models recite: give the "
            "server more public sentences, or take a backbone that was pretrained on text of the "
            "kind"
        )


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
