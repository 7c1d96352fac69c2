"""Answers of a device that are not what was asked for."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning import DWC
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.encoding import decode, encode
from tests.unit.network.conftest import failures


def _replace(client: str, part: Callable[[Envelope], Envelope]) -> Callable[[str, bytes], bytes]:
    def spoil(who: str, answer: bytes) -> bytes:
        told = Envelope.of(answer)
        return part(told).to_bytes() if who == client and told.kind == "update" else answer

    return spoil


def _not_a_number(told: Envelope) -> Envelope:
    message, envelope = decode(told.parts[0])
    tensors = {k: torch.full_like(v, torch.nan) for k, v in message.tensors.items()}
    return told._replace(parts=[encode(Message(tensors, message.scalars), envelope)])


HOSTILE: dict[str, tuple[Callable[[Envelope], Envelope], str]] = {
    "another client's name": (
        lambda told: told._replace(header={**told.header, "client": "kitchen"}),
        "it says that it is client 'kitchen'",
    ),
    "an old round": (
        lambda told: told._replace(header={**told.header, "round": -3}),
        "it is of round -3",
    ),
    "an unknown kind": (lambda told: told._replace(kind="praise"), "unknown answer 'praise'"),
    "no number": (_not_a_number, "not finite"),
    "no message": (lambda told: told._replace(parts=[b"\0" * 64]), "unreadable message"),
    "two messages": (lambda told: told._replace(parts=[b"", b""]), "too many values"),
    "a failure of its own making": (
        lambda told: Envelope("failure", {**told.header, "failure": {"kind": "boredom"}}),
        "kind must be one of",
    ),
}


QUICK = {"another client's name", "no number", "a failure of its own making"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in HOSTILE],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused_by_name(
    federate: Callable[..., SimpleNamespace], name: str
) -> None:
    change, words = HOSTILE[name]
    run = federate(lambda wire: setattr(wire, "spoil", _replace("hall", change)), rounds=1)
    assert failures(run) == [(0, "hall", "refused", "uplink")]
    assert words in run.logs["hall"]


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(10**400, id="too large", marks=pytest.mark.slow),
        float("nan"),
        pytest.param(-1.0, marks=pytest.mark.slow),
    ],
)
def test_a_codec_error_that_is_none_is_refused(
    federate: Callable[..., SimpleNamespace], told: float
) -> None:
    spoil = _replace("hall", lambda e: e._replace(header={**e.header, "codec_error": told}))
    run = federate(lambda wire: setattr(wire, "spoil", spoil), rounds=1, codec=DWC())
    assert failures(run) == [(0, "hall", "refused", "uplink")]
