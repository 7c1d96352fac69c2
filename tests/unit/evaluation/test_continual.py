import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning.algorithms import Standalone
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data import DomainStream
from mlecs_lightning.evaluation.continual import ContinualEvaluation

CLIENTS = {
    "kitchen": ClientSettings(["pixels"], domains=["bold", "light"]),
    "hall": ClientSettings(["profile"], domains=["bold", "light"]),
}


def streamed(tiny: SimpleNamespace, stream: DomainStream | None) -> ContinualEvaluation:
    data = tiny.data(partition="domain", schedule=stream)
    tiny.build(Standalone(), tiny.parties(CLIENTS), data)
    return ContinualEvaluation(data)


def test_a_phase_of_any_client_ends_with_the_round_before_the_next(tiny: SimpleNamespace) -> None:
    stream = streamed(
        tiny, DomainStream({"kitchen": ["bold", "light"], "hall": ["bold"]}, rounds_per_domain=3)
    )
    assert [r for r in range(9) if stream.due(("kitchen", "hall"), r)] == [2]
    assert not any(stream.due(("hall",), r) for r in range(9))
    assert not any(streamed(tiny, None).due(("kitchen",), r) for r in range(9))


def test_a_summary_by_hand(tiny: SimpleNamespace) -> None:
    stream = streamed(tiny, DomainStream({"kitchen": ["bold", "light"]}))
    history = [
        {
            "round": r,
            "clients/kitchen/domains/bold/accuracy": bold,
            "clients/kitchen/domains/light/accuracy": light,
            "clients/hall/domains/all/accuracy": 0.3 + r / 10,
        }
        for r, (bold, light) in enumerate([(0.9, 0.1), (0.5, 0.7)])
    ]
    summary = stream.summary(history, ("kitchen", "hall"))
    assert summary["clients"]["kitchen"] == {
        "phases": [[0, "bold"], [1, "light"]],
        "accuracy": {
            "present": pytest.approx(0.8),
            "final": pytest.approx(0.6),
            "backward_transfer": pytest.approx(-0.4),
            "forgetting": pytest.approx(0.4),
        },
    }
    # Hall has no stream: one phase, of which the last row counts, and nothing to forget.
    assert summary["clients"]["hall"]["accuracy"] == {
        "present": pytest.approx(0.4),
        "final": pytest.approx(0.4),
    }
    assert summary["mean"]["accuracy"]["present"] == pytest.approx(0.6)
    assert summary["mean"]["accuracy"]["forgetting"] == pytest.approx(0.4)
    assert streamed(tiny, None).summary(history, ("kitchen",)) is None


def test_the_log_of_a_run_has_the_present_the_earlier_and_all(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """Without validation a row is there at the end of a phase; the last one is in the summary."""
    data = tiny.data(partition="domain", schedule=DomainStream(["bold", "light"], repeat=2))
    summary = tiny.fit(
        Standalone(steps=tiny.steps()),
        tmp_path,
        tiny.parties(CLIENTS),
        data,
        max_rounds=4,
        enable_checkpointing=True,
    )
    path = tmp_path / "tiny/version_0/checkpoints/round=0003.ckpt"
    rows = torch.load(path, weights_only=True)["history"]
    at = "clients/hall/{}/rouge_lsum".format
    first, second, _, last = rows
    told = {k for row in rows for k in row if "stream/" in k or "/domains/" in k}
    assert told == set(ContinualEvaluation(data).names(tuple(CLIENTS)))
    assert streamed(tiny, None).names(tuple(CLIENTS)) == []
    assert at("stream/earlier") not in first
    assert first[at("stream/present")] == first[at("domains/bold")]
    assert second[at("stream/present")] == second[at("domains/light")]
    assert second[at("stream/earlier")] == second[at("domains/bold")]
    both = (second[at("domains/bold")] + second[at("domains/light")]) / 2
    assert second[at("stream/all")] == pytest.approx(both)
    means = [second[f"clients/{c}/stream/all/rouge_lsum"] for c in CLIENTS]
    assert second["stream/all/rouge_lsum"] == pytest.approx(sum(means) / 2)
    assert at("stream/all") not in last  # no phase ends with it
    scores = summary["stream"]["clients"]["hall"]["rouge_lsum"]
    assert set(scores) == {"present", "final", "backward_transfer", "forgetting"}
    assert summary["stream"]["clients"]["hall"]["phases"][3] == [3, "light"]


def test_a_share_of_the_clients_is_scored_between_the_ends_of_phases(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    stream = DomainStream(["bold", "light"], rounds_per_domain=2)
    data = tiny.data(partition="domain", schedule=stream)
    options = {"max_rounds": 3, "check_val_every_n_rounds": 1, "enable_checkpointing": True}
    summary = tiny.fit(
        Standalone(steps=tiny.steps()),
        tmp_path,
        tiny.parties(CLIENTS),
        data,
        limit_eval_clients=1,
        limit_test_clients=1,
        **options,
    )
    path = tmp_path / "tiny/version_0/checkpoints/round=0002.ckpt"
    rows = torch.load(path, weights_only=True)["history"]
    scored = [[c for c in CLIENTS if f"clients/{c}/val/loss" in row] for row in rows]
    streamed = [[c for c in CLIENTS if any(f"clients/{c}/domains" in k for k in r)] for r in rows]
    assert [len(each) for each in scored] == summary["validated"] == [1, 1, 1]
    assert streamed == [scored[0], list(CLIENTS), scored[2]]  # a phase ends with round 1
    assert summary["tested"] == 1
    finals = {c: summary["stream"]["clients"][c]["rouge_lsum"]["final"] for c in CLIENTS}
    assert all(map(math.isfinite, finals.values()))


def test_without_a_schedule_nothing_is_said(tiny: SimpleNamespace, tmp_path: Path) -> None:
    summary = tiny.fit(Standalone(steps=tiny.steps()), tmp_path)
    assert "stream" not in summary
