"""What happens on a network: lost answers, absent devices, other settings, hostile bytes."""

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mlecs_lightning import Centralized, FedAvg, Standalone
from mlecs_lightning.checkpoints.checkpoint import CheckpointError, checkpoint_of, load_checkpoint
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.device import check_algorithm
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.network.finish import finish
from mlecs_lightning.network.serve import check_late
from mlecs_lightning.rounds import Algorithm, Participation, Privacy
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.encoding import decode
from tests.unit.network.conftest import ROUNDS, failures


def server_of(root: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoint_of(root / "tiny" / "version_0"))["server"]["model"]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def unbroken(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("unbroken")
    algorithm = FedAvg(steps=tiny.steps(warmup=1))
    tiny.fit(algorithm, root, max_rounds=ROUNDS, enable_checkpointing=True)
    return server_of(root)


def test_a_lost_answer_is_asked_for_again_and_changes_nothing(
    federate: Callable[..., SimpleNamespace],
    unbroken: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlecs_lightning.network.link._PATIENCE", (0.0,))
    lost: list[bytes] = []

    def spoil(client: str, answer: bytes) -> bytes | None:
        if client == "hall" and Envelope.of(answer).kind == "update" and len(lost) < 2:
            lost.append(answer)
            return None
        return answer

    run = federate(lambda wire: setattr(wire, "spoil", spoil))
    assert lost[0] == lost[1]
    assert run.events == []
    assert same(server_of(run.root), unbroken)


def test_what_has_been_answered_is_not_trained_again(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps(warmup=1))
    trainer = tiny.trainer(tmp_path / "server", max_rounds=1)
    wire = network.wire(network.devices(algorithm, tmp_path / "devices", trainer))
    network.serve(algorithm, trainer, wire)
    session, trained = wire.sessions["hall"], list[int]()
    (request, answer), *_ = [(r, a) for client, r, a in wire.log if client == "hall"]
    work = session.device.work
    session.device.work = lambda ctx, *rest: (trained.append(ctx.round), work(ctx, *rest))[1]
    assert session.answer(request) == answer
    assert trained == []
    asked = Envelope.of(request)
    session.answer(asked._replace(header={**asked.header, "last": 7}).to_bytes())
    assert session.answer(request) == answer  # from the same state, to the same bytes
    assert trained == [0]


def test_a_late_reply_counts_once_in_the_next_round(
    federate: Callable[..., SimpleNamespace],
) -> None:
    run = federate(lambda wire: wire.late.add((0, "hall")), deadline=0.5, late="next", rounds=3)
    assert failures(run) == [(0, "hall", "straggler", "")]
    updates, offers = dict[Any, Message](), dict[Any, Message]()
    for client, request, answer in run.wire.log:
        asked, told = Envelope.of(request), Envelope.of(answer)
        if told.kind == "update":
            updates[client, told.header["round"]] = decode(told.parts[0])[0]
            offers[client, told.header["round"]] = decode(asked.parts[1])[0]
    assert ("hall", 1) not in updates  # it has been sent nothing new
    counted = [updates[key] for key in (("kitchen", 1), ("hall", 0), ("study", 1))]
    whole = sum(float(each.scalars["samples"]) for each in counted)
    for name, mean in offers["hall", 2].component("adapter").items():
        shares = [
            each.tensors[f"adapter/{name}"].double() * float(each.scalars["samples"]) / whole
            for each in counted
        ]
        expected = torch.stack(shares).sum(0)
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-7)
    saved = load_checkpoint(checkpoint_of(run.root / "tiny" / "version_0"))
    ledger = {(way, client): n for way, client, n in saved["ledger"]["messages"]}
    assert (ledger["downlink", "hall"], ledger["uplink", "hall"]) == (2, 2)
    assert (ledger["downlink", "study"], ledger["uplink", "study"]) == (3, 3)
    assert [row.get("clients/hall/late") for row in saved["history"]] == [None, 1, None]


@pytest.mark.slow
def test_a_late_reply_that_is_lost_is_not_waited_for(
    federate: Callable[..., SimpleNamespace],
) -> None:
    def change(wire: Any) -> None:  # noqa: ANN401
        wire.late.add((0, "hall"))
        wire.spoil = lambda client, answer: (
            None if (client, Envelope.of(answer).header.get("round")) == ("hall", 0) else answer
        )

    run = federate(change, deadline=0.5, late="next", rounds=3)
    assert failures(run) == [(0, "hall", "straggler", ""), (1, "hall", "straggler", "")]
    assert run.wire.sessions["hall"].store.rounds[-1] == 2


def test_a_full_disk_is_a_failure_of_that_device_until_there_is_room(
    federate: Callable[..., SimpleNamespace],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def change(wire: Any) -> None:  # noqa: ANN401
        session = wire.sessions["hall"]

        def full(request: bytes) -> bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            try:
                told: bytes = session.answer(request)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if Envelope.of(told).kind == "failure":
                wire.sessions["hall"] = session
            return told

        wire.sessions["hall"] = SimpleNamespace(answer=full)

    run = federate(change)
    assert [tuple(e.values()) for e in run.events] == [
        (0, "hall", "error", "state", "FullDiskError")
    ]
    folder = run.root.parent / "devices" / "hall"
    assert "hall@0000.pt" in (folder / "errors.log").read_text()
    assert [path.name for path in (folder / "states").iterdir()] == ["hall@0001.pt"]


def test_a_run_that_is_resumed_takes_the_devices_back_to_its_checkpoint(
    federate: Callable[..., SimpleNamespace], unbroken: dict[str, Any]
) -> None:
    first = federate(rounds=1)
    left = first.root / "tiny" / "version_0" / "offers-killed"
    left.mkdir()
    (left / "hall.offer").write_bytes(b"of a server that was killed")
    checkpoint = checkpoint_of(first.root / "tiny" / "version_0")
    kept = checkpoint.read_bytes()
    federate(wire=first.wire, ckpt_path="last")
    for newer in checkpoint.parent.glob("round=*.ckpt"):
        newer.unlink()
    checkpoint.write_bytes(kept)  # as if the server had lost its last round
    run = federate(wire=first.wire, ckpt_path="last")
    assert same(server_of(run.root), unbroken)
    assert first.wire.sessions["hall"].store.rounds == [0, 1]
    assert not left.exists()


def test_who_is_away_at_the_deadline_is_left_out_and_taken_again(
    federate: Callable[..., SimpleNamespace],
) -> None:
    def change(wire: Any) -> None:  # noqa: ANN401
        wire.away = {"hall"}
        wire.spoil = lambda client, answer: None if client == "study" else answer

    run = federate(change, deadline=0.5, rounds=1)
    assert failures(run) == [(0, "hall", "dropout", ""), (0, "study", "straggler", "")]
    saved = load_checkpoint(checkpoint_of(run.root / "tiny" / "version_0"))
    counted = {(way, client): n for way, client, n in saved["ledger"]["messages"]}
    assert counted.get(("downlink", "hall"), 0) == 0  # it has been sent nothing
    assert counted["downlink", "study"] == 1
    run.wire.away, run.wire.spoil = set(), lambda client, answer: answer
    again = federate(wire=run.wire, ckpt_path="last")
    assert failures(again) == failures(run)  # those of the first round, and no further ones


def test_a_device_that_has_lost_its_state_is_named(
    federate: Callable[..., SimpleNamespace],
) -> None:
    def spoil(client: str, answer: bytes) -> bytes:
        if client == "hall" and Envelope.of(answer).kind == "update":
            for file in wire_of.sessions["hall"].store.folder.glob("*.pt"):
                file.unlink()
        return answer

    wire_of = SimpleNamespace()

    def change(wire: Any) -> None:  # noqa: ANN401
        wire_of.sessions, wire.spoil = wire.sessions, spoil

    run = federate(change)
    assert failures(run) == [(1, "hall", "refused", "rollback")]
    assert "lacks its state of round 0" in run.logs["hall"]


def test_a_device_ends_with_the_round_that_counts(
    federate: Callable[..., SimpleNamespace],
) -> None:
    """Its folder may hold the states of an earlier run that had more rounds."""
    wire = federate(rounds=2).wire
    federate(wire=wire, rounds=1)
    session = wire.sessions["hall"]
    assert session.store.rounds == [0, 1]
    folder = session.store.folder.parent
    stale = folder / "checkpoints" / "round=0019.ckpt"
    stale.parent.mkdir()
    stale.touch()
    session.answer(Envelope("end", {"client": "hall", "last": 0}).to_bytes())
    summary = finish(session, folder, Fabric(accelerator="cpu", devices=1))
    assert summary["rounds"] == 1
    assert [path.name for path in stale.parent.iterdir()] == ["round=0000.ckpt"]
    saved = load_checkpoint(stale.parent / "round=0000.ckpt")
    assert saved["about"]["arguments"]["algorithm"]["weights"] == "samples"  # for a model card
    session.answer(Envelope("end", {"client": "hall", "last": None}).to_bytes())
    assert finish(session, folder, Fabric(accelerator="cpu", devices=1)) == {}
    assert not (folder / "summary.json").exists()


def test_the_best_round_is_found_again_by_the_server_s_value(
    federate: Callable[..., SimpleNamespace],
) -> None:
    """Clients are not scored on a network, so the value is another than that of `fit`."""
    run = federate(rounds=1, check_val_every_n_rounds=1)
    federate(wire=run.wire, rounds=2, check_val_every_n_rounds=1, ckpt_path="best")


def test_a_late_reply_does_not_change_what_a_checkpoint_names(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, store="disk")
    run = trainer.open(FedAvg(), tiny.data(), tiny.parties(), None, remote=True)
    federation = run.federation
    federation.confirm("hall", ended=0, received={}, round=0)
    of_round_1 = federation.store.state_dict()["hall"]  # it is late there
    federation.confirm("hall", ended=1, received={}, round=2)
    federation.store.prune([1, 2])
    assert federation.last_round("hall") == 1
    assert (federation.store.folder / of_round_1).exists()


def test_devices_with_other_settings_or_data_are_refused_with_the_keys(
    tiny: SimpleNamespace, federate: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.parties(edge=tiny.model(optimizer={"init_args": {"lr": 3e-3}}))
    devices = {
        "settings": other,
        "data": lambda: tiny.data(public_train_fraction=0.5),
        "allow": ["adapter", "samples"],
    }
    run = federate(there=FedAvg(steps=tiny.steps(warmup=1, private=2)), devices=devices, rounds=1)
    assert failures(run) == [(0, c, "refused", "handshake") for c in ("kitchen", "hall", "study")]
    said = run.logs["kitchen"]
    for words in (
        "algorithm.init_args.steps.private: 1 at the server, 2 on the device",
        "clients.kitchen.optimizer.init_args.lr: 0.01 at the server, 0.003 on the device",
        "data.init_args.public_train_fraction: 1.0 at the server, 0.5 on the device",
        "the public samples have sha256",
        "FedAvg sends 'modalities', which `allow` of device 'kitchen' does not name",
        "FedAvg sends 'report'",
    ):
        assert words in said
    assert "'samples', which" not in said


def test_a_device_that_would_add_another_share_of_noise_is_told(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """Its share follows from participation, which is otherwise the affair of the server."""
    algorithm = FedAvg(steps=tiny.steps(), weights="equal")

    def built(*names: str) -> tuple[Any, Any]:
        data = tiny.data()
        parties = tiny.parties({name: tiny.clients[name] for name in names})
        return tiny.build(algorithm, parties, data), data

    def agreed(where: Any, fraction: float, edges: Any, data: Any) -> Agreement:  # noqa: ANN401
        privacy = Privacy(clip=0.1, noise_multiplier=1.0, delta=0.01, where=where)
        options = {"privacy": privacy, "participation": Participation(fraction)}
        return Agreement.of(
            "hall",
            edges=edges,
            data=data,
            algorithm=algorithm,
            trainer=tiny.trainer(tmp_path, **options).settings,
            precision="32-true",
            public=lambda modalities: "",
        )

    three, two = built("kitchen", "hall", "study"), built("hall", "study")
    server = agreed("device", 0.5, *three).plain()
    assert agreed("device", 0.5, *three).faults(server) == []
    for device, expected in (
        (agreed("device", 1, *three), 3.0),
        (agreed("device", 0.5, *two), 1.0),
    ):
        (fault,) = device.faults(server)
        assert fault.startswith("trainer.privacy.expected_participants (participation.fraction")
        assert fault.endswith(f": 1.5 at the server, {expected} on the device")
    by_server = agreed("server", 0.5, *three).plain()
    assert agreed("server", 1.0, *two).faults(by_server) == []  # the device adds none


def test_what_may_leave_can_be_listed(
    federate: Callable[..., SimpleNamespace], unbroken: dict[str, Any]
) -> None:
    allow = ["adapter", "modalities", "samples", "report"]
    run = federate(devices={"allow": allow})
    assert run.events == []
    assert same(server_of(run.root), unbroken)


def test_a_device_refuses_requests_that_are_not_for_it(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path)
    session = network.devices(FedAvg(), tmp_path, trainer)["hall"]
    for request, words in (
        (b"", "do not begin with a header"),
        (b"\xff" * 40, "do not begin with a header"),
        (Envelope("offer", {"client": "study"}).to_bytes(), "this is client 'hall'"),
        (Envelope("dance", {"client": "hall"}).to_bytes(), "unknown request 'dance'"),
        (Envelope("offer").to_bytes(), "KeyError"),
    ):
        answer = Envelope.of(session.answer(request))
        assert answer.kind == "refused"
        assert words in str(answer.header["reasons"])
    asked = Envelope("offer", {"client": "hall", "round": 0, "last": None}, [b"", b""])
    assert Envelope.of(session.answer(asked.to_bytes())).kind == "stranger"


def test_serve_and_fit_do_not_resume_each_others_runs(
    tiny: SimpleNamespace, federate: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    federate(rounds=1)
    trainer = tiny.trainer(tmp_path / "server", max_rounds=2)
    with pytest.raises(CheckpointError, match="resume it with `mlecs serve`"):
        trainer.fit(FedAvg(steps=tiny.steps(warmup=1)), tiny.data(), tiny.parties(), "last")


@pytest.mark.parametrize(
    ("deadline", "private", "words"),
    [(None, False, "without --deadline SECONDS"), (5.0, True, "use --late drop")],
)
def test_late_replies_need_a_deadline_and_no_privacy(
    deadline: float | None, private: bool, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_late(deadline, private=private)


@pytest.mark.parametrize("kind", [Centralized, Standalone])
def test_methods_without_a_place_on_a_network_are_refused_by_name(kind: type[Algorithm]) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} .*mlecs fit"):
        check_algorithm(kind())


def test_the_server_has_no_private_samples(
    tiny: SimpleNamespace, federate: Callable[..., SimpleNamespace]
) -> None:
    data = tiny.data()
    federate(data=data, rounds=1)
    with pytest.raises(KeyError, match="unknown client 'hall', attached: \\[\\]"):
        data.private("hall")
