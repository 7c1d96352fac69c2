"""What the server gets to know of a client beside its update: declared figures and short faults."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.algorithms import FedAvg, Standalone
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.data.schedule import DomainStream
from mlecs_lightning.federated import ClientsFailedError
from mlecs_lightning.rounds import ClientUpdate
from mlecs_lightning.wire import Message

SECRET = "anna-38.5-celsius"  # what a decoder would quote of a client's data


def folder(root: Path) -> Path:
    return root / "tiny/version_0"


def places_of_the_secret(root: Path) -> set[str]:
    """Return the files that hold it anywhere in them."""
    return {
        str(path.relative_to(folder(root)))
        for path in root.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }


class Quoting(FedAvg):
    """Clients whose code quotes their data, in one way or another."""

    who: tuple[str, ...] = ("hall",)
    how: Callable[[ClientUpdate], ClientUpdate]

    def client_update(self, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        update = super().client_update(edge, *args)
        return type(self).how(update) if edge.name in self.who else update


def raising(update: ClientUpdate) -> ClientUpdate:
    raise ValueError(f"row 7: cannot decode {SECRET!r}")


def caused(update: ClientUpdate) -> ClientUpdate:
    try:
        int(SECRET)
    except ValueError as error:
        raise OSError("a sensor failed") from error
    return update


def named(update: ClientUpdate) -> ClientUpdate:
    raise type(SECRET, (KeyError,), {})("a class that is called by the data")


def undeclared_scalar(update: ClientUpdate) -> ClientUpdate:
    assert update.message is not None
    scalars = {**update.message.scalars, SECRET: SECRET}
    return update._replace(message=Message(update.message.tensors, scalars))


def undeclared_tensor(update: ClientUpdate) -> ClientUpdate:
    assert update.message is not None
    tensors = {**update.message.tensors, SECRET: torch.ones(1)}
    return update._replace(message=Message(tensors, update.message.scalars))


def wrong_scalar(update: ClientUpdate) -> ClientUpdate:
    assert update.message is not None
    scalars = {**update.message.scalars, "samples": SECRET}
    return update._replace(message=Message(update.message.tensors, scalars))


QUOTES = {
    "text": (raising, "error", "public", "ValueError"),
    "cause": (caused, "error", "public", "OSError"),
    "class": (named, "error", "public", "Exception"),
    "scalar": (undeclared_scalar, "refused", "uplink", "ChannelError"),
    "tensor": (undeclared_tensor, "refused", "uplink", "ChannelError"),
    "value": (wrong_scalar, "refused", "uplink", "ChannelError"),
}


class Told(FederatedCallback):
    """Notes what callbacks are told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_client_fault(self, *, round: int, client: str, kind: str, reason: str) -> None:
        self.said.append(reason)


@pytest.mark.parametrize("name", QUOTES)
def test_texts_of_a_client_stay_in_its_own_file(
    tiny: SimpleNamespace, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    how, kind, stage, error = QUOTES[name]
    algorithm = type("Q", (Quoting,), {"how": staticmethod(how)})(steps=tiny.steps())
    options = {"enable_checkpointing": True, "logger": True, "check_val_every_n_rounds": 1}
    told = Told()
    with caplog.at_level(logging.DEBUG):
        summary = tiny.fit(algorithm, tmp_path, callbacks=[told], **options)
    assert summary["faults"]["events"] == [
        {"round": 0, "client": "hall", "kind": kind, "stage": stage, "error": error}
    ]
    path = folder(tmp_path) / "clients/hall/errors.log"
    assert told.said == [f"client 'hall', stage {stage!r}: {error}; full text in {path}"]
    assert places_of_the_secret(tmp_path) == {"clients/hall/errors.log"}
    assert SECRET not in json.dumps(summary)
    assert SECRET not in caplog.text
    assert "Traceback" in path.read_text()


def test_a_run_that_ends_because_all_failed_says_where_to_look(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    parts = {"how": staticmethod(raising), "who": tuple(tiny.clients)}
    algorithm = type("Q", (Quoting,), parts)(steps=tiny.steps())
    with pytest.raises(ClientsFailedError) as caught:
        tiny.fit(algorithm, tmp_path)
    logs = {c: folder(tmp_path) / "clients" / c / "errors.log" for c in tiny.clients}
    assert str(caught.value).splitlines() == [
        "round 0: every client failed:",
        *(f"client {c!r}, stage 'public': ValueError; full text in {p}" for c, p in logs.items()),
    ]
    assert all(SECRET in path.read_text() for path in logs.values())
    assert caught.value.__cause__ is None


# Figures --------------------------------------------------------------------------------------


def test_figures_go_up_as_they_were_and_are_counted_apart(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    parts = {}
    for name, algorithm in (("up", FedAvg), ("none", Standalone)):
        options = {"enable_checkpointing": True, "name": name}
        summary = tiny.fit(algorithm(steps=tiny.steps()), tmp_path, **options)
        path = tmp_path / name / "version_0/checkpoints/round=0000.ckpt"
        history = torch.load(path, weights_only=True)["history"]
        losses = {k for k in history[0] if k.startswith("clients/") and k.endswith("/loss")}
        stages = ("public", "private") if name == "up" else ("private",)
        assert losses == {f"clients/{c}/{stage}/loss" for c in tiny.clients for stage in stages}
        parts[name] = summary["communication"]["by_component"]["uplink"]
    assert parts["none"] == {}  # what nobody is sent is the experimenter's view
    assert parts["up"]["report"] == 3 * 2 * 8  # three clients, two losses


class Gossip(FedAvg):
    """Clients that tell more than is declared."""

    def client_update(self, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        update = super().client_update(edge, *args)
        more = {SECRET: 1.0, "public/temperature": 38.5, "private/loss": float("nan")}
        return update._replace(metrics=update.metrics | more)


def test_undeclared_figures_stay_on_the_device_and_that_is_said_once(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = tiny.fit(
        Gossip(steps=tiny.steps()), tmp_path, enable_checkpointing=True, logger=True, max_rounds=2
    )
    assert summary["faults"]["events"] == []
    state = torch.load(max(folder(tmp_path).rglob("*.ckpt")), weights_only=True)
    for row in state["history"]:
        figures = {k for k in row if k.startswith("clients/")}
        assert figures == {f"clients/{c}/public/loss" for c in tiny.clients}
    lines = [r.getMessage() for r in caplog.records if "does not declare" in r.getMessage()]
    assert len(lines) == 1
    assert "Gossip.figures()" in lines[0]
    assert "public/temperature" in lines[0]


# Updates and claims ---------------------------------------------------------------------------


class Huge(FedAvg):
    """One client whose training explodes without becoming infinite."""

    factor: float = 1e38

    def client_update(self, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        update = super().client_update(edge, *args)
        if edge.name != "hall" or update.message is None:
            return update
        tensors = {k: torch.full_like(t, self.factor) for k, t in update.message.tensors.items()}
        return update._replace(message=Message(tensors, update.message.scalars))


@pytest.mark.parametrize("factor", [1e38, -1e38, 1e4])
def test_an_update_out_of_all_proportion_is_refused_by_default(
    tiny: SimpleNamespace, tmp_path: Path, factor: float
) -> None:
    algorithm = type("H", (Huge,), {"factor": factor})(steps=tiny.steps())
    summary = tiny.fit(algorithm, tmp_path)
    (event,) = summary["faults"]["events"]
    assert (event["client"], event["kind"], event["error"]) == (
        "hall",
        "refused",
        "LargeUpdateError",
    )


class Growing(FedAvg):
    """One client that claims one sample more in every round."""

    def client_update(self, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        update = super().client_update(edge, *args)
        if edge.name != "hall" or update.message is None:
            return update
        samples = update.message.scalars["samples"]
        assert isinstance(samples, int)
        scalars = {**update.message.scalars, "samples": samples + args[-1].round}
        return update._replace(message=Message(update.message.tensors, scalars))


def test_a_client_cannot_grow(tiny: SimpleNamespace, tmp_path: Path) -> None:
    options = {"max_rounds": 2, "enable_checkpointing": True}
    summary = tiny.fit(Growing(steps=tiny.steps()), tmp_path, **options)
    (event,) = summary["faults"]["events"]
    assert (event["round"], event["client"], event["error"]) == (1, "hall", "ChangedClaimError")
    # Nor after a restart.
    trainer = tiny.trainer(tmp_path, **(options | {"max_rounds": 3}))
    again = trainer.fit(Growing(steps=tiny.steps()), tiny.data(), tiny.parties(), "last")
    assert [e["round"] for e in again["faults"]["events"]] == [1, 2]


def test_data_that_change_by_a_schedule_are_no_other_claim(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    data = tiny.data(schedule=DomainStream(["bold", "light"], repeat=2))
    summary = tiny.fit(FedAvg(steps=tiny.steps()), tmp_path, None, data, max_rounds=4)
    counts = [len(data.private("hall", "train", round=r)) for r in range(4)]
    assert counts[0] != counts[1]
    assert counts[:2] == counts[2:]
    assert summary["faults"]["events"] == []
