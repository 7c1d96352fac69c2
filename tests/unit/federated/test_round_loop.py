"""Rounds in which clients are absent, late, broken or hostile."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms import FedAvg, Standalone
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.checkpoints.checkpoint import load_checkpoint
from mlecs_lightning.rounds import (
    ClientUpdate,
    FailureTrace,
    Interrupted,
    Participation,
    UpdateLimits,
)
from mlecs_lightning.rounds.failures import Fate
from mlecs_lightning.rounds.participation import sample_clients
from mlecs_lightning.wire import Channel, Message, MessageLimits
from mlecs_lightning.wire.encoding import decode, encode

KINDS = ("dropout", "straggler", "crash", "error", "refused")


@dataclass(frozen=True)
class Spares(FailureTrace):
    """The drawn misfortunes, which spare some clients."""

    spared: tuple[str, ...] = ()

    def fate(self, round: int, client: str) -> Fate:
        return Fate() if client in self.spared else super().fate(round, client)


def last(root: Path) -> dict[str, Any]:
    path = max(root.glob("tiny/version_0/checkpoints/*.ckpt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def hosted(root: Path) -> dict[str, Tensor]:
    """Return the adapter that the server hosts, which is the aggregate if it has not trained."""
    model = last(root)["server"]["model"]
    return {k: v for k, v in model.items() if k.startswith("towers.slm") and "lora_" in k}


def errors(root: Path, client: str) -> str:
    return (root / "tiny/version_0/clients" / client / "errors.log").read_text()


def equal(one: Any, other: Any) -> bool:  # noqa: ANN401 - nested states
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


# Who takes part ----------------------------------------------------------------------------------

NAMES = tuple("abcdefghij")


def test_participants_are_a_function_of_the_round() -> None:
    drawn = [sample_clients(NAMES, 0.3, seed=1, round=r) for r in range(50)]
    assert drawn == [sample_clients(NAMES, 0.3, seed=1, round=r) for r in range(50)]
    assert drawn != [sample_clients(NAMES, 0.3, seed=2, round=r) for r in range(50)]
    assert {len(d) for d in drawn} == {3}
    assert all(list(d) == sorted(d) for d in drawn)  # in the federation's order
    assert {name for d in drawn for name in d} == set(NAMES)
    assert len(set(drawn)) > 20


@pytest.mark.parametrize(
    ("fraction", "count"), [(1.0, 10), (1, 10), (0.25, 3), (0.24, 2), (0.01, 1), (0.96, 10)]
)
def test_the_share_is_rounded_and_nobody_is_left_alone(fraction: float, count: int) -> None:
    assert len(sample_clients(NAMES, fraction, seed=0, round=0)) == count


class Files(FederatedCallback):
    """Notes which messages lie in the run's folder while clients are served."""

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        self.folder, self.seen = Path(folder), list[list[str]]()

    def on_client_end(self, *, round: int, client: str, metrics: object) -> None:
        self.seen.append(sorted(p.name for p in self.folder.rglob("*.message")))


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_messages_are_kept_in_files_where_a_round_can_be_gone_on_with(
    tiny: SimpleNamespace, tmp_path: Path, *, store: str, checkpoints: bool
) -> None:
    files = Files()
    options = {"enable_checkpointing": checkpoints, "store": store, "callbacks": [files]}
    tiny.fit(FedAvg(steps=tiny.steps()), root=tmp_path, **options)
    names = [f"{client}.message" for client in ("hall", "kitchen", "study")]
    assert [len(seen) for seen in files.seen] == ([1, 2, 3] if checkpoints else [0, 0, 0])
    assert files.seen[-1] == (names if checkpoints else [])
    assert not list(tmp_path.rglob("*.message"))


def test_clients_that_were_not_drawn_keep_their_state(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps())
    options = {"enable_checkpointing": True, "participation": Participation(0.34), "max_rounds": 3}
    summary = tiny.fit(algorithm, tmp_path, **options)
    took_part = [sample_clients(tuple(tiny.clients), 0.34, seed=0, round=r) for r in range(3)]
    assert [len(t) for t in took_part] == [1, 1, 1]
    trained = {client for t in took_part for client in t}
    assert set(last(tmp_path)["clients"]) == trained
    assert summary["communication"]["by_component"]["uplink"]["adapter"] == 3 * 9216
    assert sum(summary["faults"][kind] for kind in KINDS) == 0


# Misfortunes --------------------------------------------------------------------------------------


def test_a_run_of_which_half_the_clients_fail_at_random_gets_to_its_end(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    trace = FailureTrace(
        dropout_rate=0.2,
        straggler_rate=0.5,
        slowdown=4.0,
        deadline=3,
        crash_rate=0.3,
        crash_within=2,
        seed=2,
    )
    diary: list[tuple[int, str, str]] = []

    class Diary(FederatedCallback):
        def on_client_fault(self, *, round: int, client: str, kind: str, reason: str) -> None:
            diary.append((round, client, kind))

    summary = tiny.fit(
        FedAvg(steps=tiny.steps()), tmp_path, max_rounds=10, faults=trace, callbacks=[Diary()]
    )
    assert summary["rounds"] == 10
    events = summary["faults"]["events"]
    assert 10 <= len(events) <= 25  # of 30
    for kind in KINDS:
        assert summary["faults"][kind] == sum(event["kind"] == kind for event in events)
    assert all(summary["faults"][kind] > 0 for kind in ("dropout", "straggler", "crash"))
    assert diary == [(e["round"], e["client"], e["kind"]) for e in events]
    for event in events:  # by hand from the trace: two steps a round, one of them private
        fate = trace.fate(event["round"], event["client"])
        expected = (
            "dropout" if fate.drops
            else "crash" if fate.crash is not None and fate.crash <= (fate.budget or 0)
            else "straggler"
        )  # fmt: skip
        assert event["kind"] == expected, (event, fate)


def test_clients_that_never_fail_do_not_notice_the_others(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    trace = Spares(dropout_rate=0.4, crash_rate=0.5, crash_within=2, spared=("kitchen",))
    runs = {}
    for name, faults in (("calm", None), ("rough", trace)):
        options = {"max_rounds": 4, "faults": faults, "enable_checkpointing": True}
        summary = tiny.fit(Standalone(steps=tiny.steps()), tmp_path / name, **options)
        runs[name] = last(tmp_path / name)["clients"]
    assert len(summary["faults"]["events"]) >= 3
    assert equal(runs["calm"]["kitchen"], runs["rough"]["kitchen"])
    assert not equal(runs["calm"], runs["rough"])


class Raises(FedAvg):
    """FedAvg whose client code raises for one client, after it has trained."""

    def client_update(self, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        update = super().client_update(edge, *args)
        if edge.name == "hall" and args[-1].round == 1:
            raise OSError("the sensor is gone")
        return update


def test_a_client_that_raises_keeps_its_last_good_state(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    options = {"enable_checkpointing": True, "max_rounds": 2}
    summary = tiny.fit(Raises(steps=tiny.steps()), tmp_path, **options)
    assert summary["faults"]["events"] == [
        {**{"round": 1, "client": "hall", "kind": "error"}, "stage": "public", "error": "OSError"}
    ]
    assert "\nOSError: the sensor is gone\n" in errors(tmp_path, "hall")
    folder = tmp_path / "tiny/version_0/checkpoints"
    first = torch.load(folder / "round=0000.ckpt", weights_only=True)["clients"]
    second = torch.load(folder / "round=0001.ckpt", weights_only=True)["clients"]
    assert equal(first["hall"], second["hall"])
    assert not equal(first["kitchen"], second["kitchen"])


@pytest.mark.parametrize(("least", "used"), [(2, True), (3, False)])
def test_an_aggregate_of_too_few_is_not_used(
    tiny: SimpleNamespace, tmp_path: Path, least: int, used: bool
) -> None:
    trace = Spares(dropout_rate=1.0, spared=("kitchen", "study"))
    algorithm = FedAvg(steps=tiny.steps(server=0))
    options = {
        "faults": trace,
        "participation": Participation(min_clients=least),
        "enable_checkpointing": True,
    }
    summary = tiny.fit(algorithm, tmp_path, **options)
    start = tiny.build(algorithm).server.state_dict()["model"]
    moved = any(not torch.equal(t, start[k]) for k, t in hosted(tmp_path).items())
    assert moved == used
    assert len(summary["aggregation_error"]) == used


def test_a_round_without_anybody_passes(tiny: SimpleNamespace, tmp_path: Path) -> None:
    trace = FailureTrace(dropout_rate=1.0)
    summary = tiny.fit(FedAvg(steps=tiny.steps()), tmp_path, faults=trace)
    assert summary["faults"]["dropout"] == 3
    assert summary["communication"]["uplink_bytes"] == 0


# Hostile messages ---------------------------------------------------------------------------------

Spoil = Callable[[bytes, dict[int, bytes]], bytes]


def rewritten(
    change: Callable[[dict[str, Tensor], dict[str, Any], dict[str, Any]], None],
) -> Spoil:
    """Return a spoiler that changes tensors, scalars or envelope of a message."""

    def spoil(data: bytes, sent: dict[int, bytes]) -> bytes:
        message, envelope = decode(data)
        parts = dict(message.tensors), dict(message.scalars), dict(envelope)
        change(*parts)
        return encode(Message(parts[0], parts[1]), parts[2])

    return spoil


def first_tensor(change: Callable[[Tensor], Tensor]) -> Spoil:
    def apply(tensors: dict[str, Tensor], *_: object) -> None:
        name = min(tensors)
        tensors[name] = change(tensors[name])

    return rewritten(apply)


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "cut": (lambda data, sent: data[:-7], "unreadable message"),
    "noise": (lambda data, sent: bytes(range(256)) * 8, "unreadable message"),
    "empty": (lambda data, sent: b"", "unreadable message of 0 bytes"),
    "long": (lambda data, sent: data * 40, "bytes exceed 100000"),
    "replay": (lambda data, sent: sent[0], "round is 0, expected 1"),
    "stranger": (rewritten(lambda t, s, e: e.update(client="x")), "client is 'x', expected 'hall'"),
    "keys": (rewritten(lambda t, s, e: t.update(x=torch.ones(1))), "undeclared tensor 'x'"),
    "lacking": (rewritten(lambda t, s, e: t.__delitem__(min(t))), "missing tensor 'adapter/"),
    "shape": (first_tensor(lambda t: t[:1].clone()), "shape"),
    "dtype": (first_tensor(lambda t: t.half()), "dtype torch.float16"),
    "nan": (first_tensor(lambda t: torch.full_like(t, torch.nan)), "not finite"),
    "inf": (first_tensor(lambda t: torch.full_like(t, torch.inf)), "not finite"),
    "norm": (first_tensor(lambda t: t * 1e6), "LargeUpdateError: uplink of client 'hall'"),
    "huge": (
        first_tensor(lambda t: torch.full_like(t, 3e38)),
        "LargeUpdateError: uplink of client 'hall'",
    ),
    "more": (rewritten(lambda t, s, e: s.update(samples=s["samples"] + 1)), "ChangedClaimError"),
    "weight": (rewritten(lambda t, s, e: s.update(samples=10**12)), "scalar 'samples'"),
    "nothing": (rewritten(lambda t, s, e: s.update(samples=0)), "scalar 'samples'"),
    "claims": (rewritten(lambda t, s, e: s.update(modalities=("a",) * 99)), "scalar 'modalities'"),
}


@contextmanager
def intercepted(client: str, round: int, spoil: Spoil) -> Iterator[None]:
    """Change what comes up from one client in one round, on its way."""
    receive, sent = Channel.receive, dict[int, bytes]()

    def tampered(self: Channel, data: bytes, schema: Any, **facts: Any) -> Any:  # noqa: ANN401
        if (facts["direction"], facts["client"]) == ("uplink", client):
            sent[facts["round"]] = data
            if facts["round"] == round:
                data = spoil(data, sent)
        return receive(self, data, schema, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "receive", tampered)
        yield


@dataclass(frozen=True)
class Once(FailureTrace):
    """Hall is absent from round 1."""

    def fate(self, round: int, client: str) -> Fate:
        return Fate(drops=(round, client) == (1, "hall"))


LIMITS = {
    "update_limits": UpdateLimits(max_norm=100.0),
    "message_limits": MessageLimits(max_bytes=100_000),
    "max_rounds": 2,
}


@pytest.fixture(scope="module")
def absent(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The aggregate of a run in which hall was not there in round 1."""
    root = tmp_path_factory.mktemp("absent")
    algorithm = FedAvg(steps=tiny.steps(server=0))
    tiny.fit(algorithm, root, faults=Once(), enable_checkpointing=True, **LIMITS)
    return hosted(root)


QUICK = ("cut", "keys", "nan", "norm", "replay", "claims")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in HOSTILE]
)
def test_a_refused_update_counts_as_none(
    tiny: SimpleNamespace, tmp_path: Path, absent: dict[str, Tensor], name: str
) -> None:
    spoil, words = HOSTILE[name]
    algorithm = FedAvg(steps=tiny.steps(server=0))
    with intercepted("hall", 1, spoil):
        summary = tiny.fit(algorithm, tmp_path, enable_checkpointing=True, **LIMITS)
    assert {kind: summary["faults"][kind] for kind in KINDS} == dict.fromkeys(KINDS, 0) | {
        "refused": 1
    }
    (event,) = summary["faults"]["events"]
    assert (event["client"], event["round"]) == ("hall", 1)
    assert (event["kind"], event["stage"]) == ("refused", "uplink")
    text = errors(tmp_path, "hall")
    assert f"{event['error']}: uplink of client 'hall' refused: " in text
    assert words in text
    assert equal(hosted(tmp_path), absent)


def test_a_large_update_may_be_clipped_instead(tiny: SimpleNamespace, tmp_path: Path) -> None:
    clients = {"hall": tiny.clients["hall"]}  # alone, so that the aggregate is its update
    algorithm = FedAvg(steps=tiny.steps(server=0))
    start = tiny.build(algorithm, tiny.parties(clients)).server.state_dict()["model"]
    spoil = first_tensor(lambda t: t + 1e3)
    with intercepted("hall", 0, spoil):
        summary = tiny.fit(
            algorithm,
            tmp_path,
            tiny.parties(clients),
            enable_checkpointing=True,
            update_limits=UpdateLimits(max_norm=2.0, on_excess="clip"),
        )
    assert summary["faults"]["refused"] == 0
    change = [t - start[k] for k, t in hosted(tmp_path).items()]
    assert float(torch.nn.utils.get_total_norm(change)) == pytest.approx(2.0, rel=1e-4)


class Late(FedAvg):
    def after_warmup(self, *_: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}


def test_a_signal_at_the_end_of_the_warm_up_does_not_lose_it(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as stopped:
        tiny.fit(Late(steps=tiny.steps(warmup=1)), tmp_path, enable_checkpointing=True)
    assert stopped.value.saved
    saved = (tmp_path / "tiny/version_0/checkpoints").glob("*.ckpt")
    assert [path.name for path in saved] == ["round=0000-partial.ckpt"]


class Measures(FedAvg):
    def server_update(self, *args: Any) -> dict[str, float]:
        return super().server_update(*args) | {"spread": np.float64(0.5)}


def test_figures_of_numpy_can_be_read_again(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.fit(Measures(steps=tiny.steps()), tmp_path, enable_checkpointing=True)
    (path,) = tmp_path.glob("tiny/version_0/checkpoints/*.ckpt")
    assert load_checkpoint(path)["history"][0]["server/spread"] == 0.5
