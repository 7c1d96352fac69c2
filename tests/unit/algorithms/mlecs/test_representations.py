"""Representations that go up: their mean by hand, their way over the wire, what is refused."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms.answers import Answers
from mlecs_lightning.algorithms.mlecs.representations import RepresentationMean, Representations
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.encoding import decode
from tests.unit.algorithms.models import saying_nothing

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
SENT = {"representations/fused", "representations/confidence"}


def update(
    fused: list[list[float]], confidence: list[float], sensors: tuple[str, ...], rightness: float
) -> Message:
    return Message(
        {
            "representations/fused": torch.tensor(fused, dtype=torch.float16),
            "representations/confidence": torch.tensor(confidence, dtype=torch.float16),
        },
        {"modalities": sensors, "rightness": rightness},
    )


def mean(*updates: Message) -> Tensor:
    total = RepresentationMean()
    for each in updates:
        total.add(each)
    result = total.result()
    assert result is not None
    return result


def test_mean_by_hand() -> None:
    """Sensors (a) are right in 0.5 and 0.7, so 0.6; (b) in 1.0; nobody is sure of the last."""
    found = mean(
        update([[2, 0], [1, 0], [1, 0]], [0.5, 1.0, 0.0], ("a",), 0.5),
        update([[0, 4], [1, 0], [1, 0]], [0.25, 0.0, 0.0], ("a",), 0.7),
        update([[0, 1], [-1, 0], [1, 0]], [1.0, 0.5, 0.0], ("b",), 1.0),
    )
    first = [0.6 * 0.5, 0.6 * 0.25 + 1.0 * 1.0]
    weight = 0.6 * 0.75 + 1.0
    second = [(0.6 * 1.0 - 1.0 * 0.5) / (0.6 + 0.5), 0.0]
    expected = torch.tensor([[x / weight for x in first], second, [0.0, 0.0]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert RepresentationMean().result() is None


def test_mean_has_the_length_of_the_agreement_and_no_client_gains_by_a_long_vector() -> None:
    one = ("a",)
    assert mean(update([[3, 4]], [0.3], one, 0.9)).norm().item() == pytest.approx(1.0)
    agree = mean(update([[3, 4]], [0.3], one, 0.9), update([[30, 40]], [0.9], one, 0.2))
    assert agree.norm().item() == pytest.approx(1.0)
    oppose = mean(update([[3, 4]], [0.5], one, 0.9), update([[-30, -40]], [0.5], one, 0.9))
    assert oppose.norm().item() == pytest.approx(0.0, abs=1e-6)


def test_mean_does_not_depend_on_the_order_of_clients() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [
        update(
            torch.randn(50, 8, generator=generator).tolist(),
            torch.rand(50, generator=generator).tolist(),
            (("a",), ("b",), ("a", "b"))[n % 3],
            n / 10,
        )
        for n in range(9)
    ]
    assert torch.equal(mean(*updates), mean(*reversed(updates)))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"fused": torch.ones(3, 2)}, "3 representations with 2 confidences, expected 2"),
        ({"confidence": torch.ones(1)}, "2 representations with 1 confidences, expected 2"),
        ({"fused": torch.full((2, 2), torch.nan)}, "a representation is not finite"),
        ({"confidence": torch.tensor([0.5, 1.5])}, r"outside of \[0, 1\]"),
        ({"confidence": torch.tensor([0.5, -0.1])}, r"outside of \[0, 1\]"),
        ({"confidence": torch.tensor([0.5, torch.nan])}, r"outside of \[0, 1\]"),
    ],
)
def test_values_that_cannot_be_are_named(values: dict[str, Tensor], match: str) -> None:
    good = update([[1, 0], [0, 1]], [0.0, 1.0], ("a",), 0.5)
    assert Representations.faults(good, samples=2) == []
    changed = {f"representations/{k}": t.half() for k, t in values.items()}
    bad = replace(good, tensors={**good.tensors, **changed})
    assert any(re.search(match, f) for f in Representations.faults(bad, samples=2))


# In a run -----------------------------------------------------------------------------------------


def data(tiny: SimpleNamespace) -> Any:  # noqa: ANN401
    return tiny.data(public_labelled=0.2)


def algorithm(tiny: SimpleNamespace, **values: Any) -> MLECS:
    steps = tiny.steps(warmup=1)
    return MLECS(steps=steps, fused_weight=1.0, representations=Representations(), **values)


@pytest.fixture(scope="module")
def run(tiny: SimpleNamespace, tapped: Tap, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    """Two rounds with representations and answers: read them, change nothing."""
    root, digits = tmp_path_factory.mktemp("representations"), data(tiny)
    values: dict[str, Any] = {"max_rounds": 2, "enable_checkpointing": True}
    with tapped() as log:
        summary = tiny.fit(
            algorithm(tiny, answers=Answers()), root, None, digits, logger=True, **values
        )
    return SimpleNamespace(root=root, log=log, data=digits, summary=summary)


def state(root: Path, number: int) -> dict[str, Any]:
    path = root / "tiny" / "version_0" / "checkpoints" / f"round={number:04d}.ckpt"
    return torch.load(path, weights_only=True)


def test_clients_send_unit_vectors_and_a_confidence_of_every_public_sample(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    table = run.data.public("train")
    up = [decode(content)[0] for way, _, content in run.log.messages if way == "uplink"]
    assert len(up) == 2 * len(tiny.clients)
    for message in up:
        assert {k for k in message.tensors if k.startswith("representations/")} == SENT
        fused = message.tensors["representations/fused"]
        assert (fused.dtype, fused.shape) == (torch.float16, (len(table), 16))
        torch.testing.assert_close(
            fused.float().norm(dim=1), torch.ones(len(table)), atol=2e-3, rtol=0
        )
        confidence = message.tensors["representations/confidence"].float()
        known = table.labelled()
        rightness = confidence[known].mean().item()
        assert message.scalars["rightness"] == pytest.approx(rightness, abs=1e-3)
    counted = run.summary["communication"]["by_component"]["uplink"]["representations"]
    assert counted == 2 * len(tiny.clients) * len(table) * 17 * 2
    for way, _, content in run.log.messages:
        if way == "downlink":
            assert not SENT & decode(content)[0].tensors.keys()


def test_confidence_is_the_probability_of_the_target_or_of_the_own_answer(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    federation = tiny.build(algorithm(tiny), None, run.data)
    edge = federation.edge("hall")
    edge.module.load_trainable_state(state(run.root, 1)["clients"]["hall"]["model"])
    table = run.data.public("train", modalities=edge.module.modalities)
    tensors, _ = Representations().sent(edge, table)
    sent = [
        decode(content)[0]
        for way, client, content in run.log.messages
        if (way, client) == ("uplink", "hall")
    ][-1]
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, sent.tensors[name], atol=2e-3, rtol=0)
    known = table.labelled().nonzero().flatten().tolist()
    ((texts, sure),) = edge.map(
        sequential_loader(table, len(table)), lambda module, batch: module.answer(batch)
    )
    confidence = tensors["representations/confidence"].float()
    for n in range(len(table)):
        if n not in known:
            expected = sure[n].item() if texts[n] else 0.0
            assert confidence[n].item() == pytest.approx(expected, abs=1e-3)
    n = known[0]
    (output,) = edge.map(sequential_loader(table.select([n]), 1), lambda m, b: m.read(b))
    expected = torch.exp(-output.loss * output.tokens()).item()
    assert confidence[n].item() == pytest.approx(expected, abs=1e-3)
    assert len(texts) == len(table)


def test_sample_that_a_client_does_not_sense_has_no_confidence(tiny: SimpleNamespace) -> None:
    edge = tiny.build(algorithm(tiny), None, data(tiny)).edge("hall")
    table = data(tiny).public("train", modalities=edge.module.modalities).select(range(6))
    present = table.present.clone()
    present[2] = False
    tensors, scalars = Representations().sent(edge, replace(table, present=present))
    confidence = tensors["representations/confidence"]
    assert [n for n in range(6) if confidence[n] == 0] == [2]
    nothing = Representations().sent(edge, replace(table, targets=("",) * 6))[1]
    assert nothing == {"rightness": 0.5}
    assert 0 <= scalars["rightness"] <= 1


def test_an_empty_answer_has_no_confidence(tiny: SimpleNamespace) -> None:
    edge = tiny.build(algorithm(tiny), None, data(tiny)).edge("hall")
    table = data(tiny).public("train", modalities=edge.module.modalities).select(range(6))
    with saying_nothing(edge.module.tower().backbone):
        tensors, _ = Representations().sent(edge, replace(table, targets=("",) * 6))
    assert not tensors["representations/confidence"].any()


def test_server_learns_from_the_mean_of_what_came_up(run: SimpleNamespace) -> None:
    rows = (run.root / "tiny" / "version_0" / "metrics.csv").read_text().splitlines()
    values = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert 0 < float(values["server/public/agreed"]) < 2
    assert "server/warmup/agreed" not in values


@pytest.mark.slow
def test_run_that_is_gone_on_with_ends_in_the_same_bits(
    run: SimpleNamespace, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    for rounds in (1, 2):
        tiny.trainer(tmp_path, max_rounds=rounds, enable_checkpointing=True).fit(
            algorithm(tiny, answers=Answers()),
            data(tiny),
            tiny.parties(),
            ckpt_path=None if rounds == 1 else "last",
        )
    one, other = state(run.root, 1), state(tmp_path, 1)
    models = [(one["server"]["model"], other["server"]["model"])]
    models += [(one["clients"][c]["model"], other["clients"][c]["model"]) for c in tiny.clients]
    assert all(torch.equal(mine[k], theirs[k]) for mine, theirs in models for k in mine)


def test_update_with_too_few_representations_is_refused_and_the_run_goes_on(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = Representations.sent

    def short(self: Representations, edge: Any, table: Any) -> Any:  # noqa: ANN401
        tensors, scalars = sent(self, edge, table)
        if edge.name == "hall":
            tensors = {k: t[1:] for k, t in tensors.items()}
        return tensors, scalars

    monkeypatch.setattr(Representations, "sent", short)
    summary = tiny.fit(algorithm(tiny), tmp_path, None, data(tiny))
    (fault,) = summary["faults"]["events"]
    assert (fault["client"], fault["kind"]) == ("hall", "refused")


def test_settings_that_do_not_fit_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"lacks \['se_ccl'\], which representations need"):
        MLECS(components=["ccl", "amt"], representations=Representations())
    with pytest.raises(ValueError, match=r"weight must be positive, got 0; leave"):
        Representations(weight=0)
