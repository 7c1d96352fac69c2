"""Real runs that go back to an earlier round of their folder, or on from elsewhere."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlecs_lightning import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.checkpoints.checkpoint import checkpoint_of, find_checkpoint, load_checkpoint
from mlecs_lightning.checkpoints.timeline import checkpoints
from mlecs_lightning.clients import FederationModels
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.federated.run import client_state
from mlecs_lightning.report.results.reading import read_runs
from mlecs_lightning.rounds import Interrupted, Participation

CASES = [*product(range(4), (-1, 0, 1, 2), ("memory", "disk"))]
QUICK = {(1, 1, "disk")}
Digests = dict[str, str]


def digest(state: Mapping[str, Any]) -> str:
    result = hashlib.sha256()
    for name in sorted(state["model"]):
        result.update(name.encode() + state["model"][name].numpy().tobytes())
    return result.hexdigest()


def digests(path: Path) -> Digests:
    """Return the digest of every party of a checkpoint; all its files have to be there."""
    state = load_checkpoint(path)
    parties = {c: client_state(saved, path) for c, saved in state["clients"].items()}
    return {
        party: digest(saved) for party, saved in (parties | {"server": state["server"]}).items()
    }


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[Digests]:
    """The digest of every party's weights at each test, be it at the end of a fit."""
    log: list[Digests] = []
    test = Evaluator.test

    def spied(self: Evaluator, federation: FederationModels, **about: int) -> dict[str, Any]:
        states = {c: federation.edge(c).state_dict() for c in federation.clients}
        states["server"] = federation.server.state_dict()
        log.append({party: digest(state) for party, state in states.items()})
        return test(self, federation, **about)

    monkeypatch.setattr(Evaluator, "test", spied)
    return log


@pytest.fixture(scope="module")
def call(tiny: SimpleNamespace) -> Callable[..., Any]:
    """Any command on two clients; another number of ``steps`` gives another model."""

    def command(
        name: str, root: Path, ckpt_path: str | Path | None, *, steps: int = 1, **values: Any
    ) -> Any:  # noqa: ANN401 - what the command returns
        options = {
            "max_rounds": 4,
            "check_val_every_n_rounds": 1,
            "participation": Participation(0.5),
        }
        options |= {"enable_checkpointing": True, "logger": True}
        trainer = tiny.trainer(root, **{**options, **values})
        trainer.config = {"trainer": {"max_rounds": trainer.max_rounds}}
        clients = {name: tiny.clients[name] for name in ("kitchen", "hall")}
        algorithm = FedAvg(steps=tiny.steps(private=steps))
        where = None if ckpt_path is None else str(ckpt_path)
        return getattr(trainer, name)(algorithm, tiny.data(), tiny.parties(clients), where)

    return command


@pytest.fixture(scope="module")
def base(
    call: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Path], Path]:
    """Copies a run of four rounds with a store, made once: returns the copy."""
    made: dict[str, Path] = {}

    def copy(store: str, root: Path) -> Path:
        if store not in made:
            made[store] = tmp_path_factory.mktemp(store)
            call("fit", made[store], None, store=store)
        shutil.copytree(made[store], root, dirs_exist_ok=True)
        return root / "tiny" / "version_0"

    return copy


@pytest.mark.parametrize(
    ("back_to", "top_k", "store"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_last_is_the_model_that_was_written_last(
    call: Callable[..., Any],
    base: Callable[[str, Path], Path],
    tested: list[Digests],
    tmp_path: Path,
    back_to: int,
    top_k: int,
    store: str,
) -> None:
    run = base(store, tmp_path)
    tested.clear()
    path = run / "checkpoints" / f"round={back_to:04d}.ckpt"
    call("fit", tmp_path, path, steps=2, store=store, save_top_k=top_k)
    call("test", tmp_path, "last", store=store)
    written, read = tested
    assert read == written
    assert digests(checkpoint_of(run)) == written, "export takes the same"
    if back_to < 3:
        assert digests(checkpoint_of(run / "abandoned_0")) != written
    history = load_checkpoint(checkpoint_of(run))["history"]
    for each in checkpoints(run / "checkpoints"):
        state = load_checkpoint(each.path)
        assert state["history"] == history[: each.round + 1]
        assert len(digests(each.path)) == len(state["clients"]) + 1, "its files are there"
    check_reports(run, history)


def check_reports(run: Path, history: list[dict[str, float]]) -> None:
    """Log, TensorBoard, summary and report tell of this timeline and of nothing else."""
    (read,) = read_runs([run.parent])
    assert read.finished
    assert [{k: row[k] for k in row if k not in ("step", "seconds")} for row in read.history] == [
        {k: pytest.approx(v) for k, v in row.items()} for row in history
    ]
    events = EventAccumulator(str(run)).Reload().Scalars("clients/val/loss")
    assert [(e.step, e.value) for e in events] == [
        (row["round"] + 1, pytest.approx(row["clients/val/loss"])) for row in history
    ]
    assert json.loads((run / "summary.json").read_text())["rounds"] == 4


# From elsewhere -----------------------------------------------------------------------------------


def copied(run: Path, root: Path) -> Path:
    shutil.copytree(run / "checkpoints", root / "copy")
    return root / "copy" / "round=0001.ckpt"


def renamed(run: Path, root: Path) -> Path:
    folder = run / "checkpoints"
    return Path(shutil.copy(folder / "round=0001.ckpt", folder / "good.ckpt"))


def backed_up(run: Path, root: Path) -> Path:
    shutil.copytree(run, run.with_name("version_0_backup"))
    return run.with_name("version_0_backup") / "checkpoints" / "round=0001.ckpt"


@pytest.mark.parametrize("place", [copied, renamed, backed_up])
def test_from_elsewhere_a_new_version_begins_with_the_checkpoint(
    call: Callable[..., Any],
    base: Callable[[str, Path], Path],
    tmp_path: Path,
    place: Callable[[Path, Path], Path],
) -> None:
    run = base("disk", tmp_path)
    path = place(run, tmp_path)
    before = sorted(run.rglob("*"))
    call("fit", tmp_path, path, max_rounds=2, store="disk")
    last = find_checkpoint("last", run_root=tmp_path / "tiny")
    assert last == tmp_path / "tiny" / "version_1" / "checkpoints" / "round=0001.ckpt"
    assert digests(last) == digests(path)
    assert sorted(run.rglob("*")) == before


def test_what_was_abandoned_can_be_gone_on_with(
    call: Callable[..., Any], base: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    run = base("disk", tmp_path)
    old = digests(run / "checkpoints" / "round=0002.ckpt")
    call("fit", tmp_path, run / "checkpoints" / "round=0000.ckpt", max_rounds=1, store="disk")
    assert find_checkpoint("last", run_root=run.parent).name == "round=0000.ckpt"
    path = run / "abandoned_0" / "checkpoints" / "round=0002.ckpt"
    call("fit", tmp_path, path, max_rounds=3, store="disk")
    last = find_checkpoint("last", run_root=run.parent)
    assert last == run.parent / "version_1" / "checkpoints" / "round=0002.ckpt"
    assert digests(last) == old == digests(path)


class Stops(FederatedCallback):
    """Stops a run when a client of round 1 has been served: by a signal, or as a kill would."""

    def __init__(self, client: str, *, kill: bool) -> None:
        self.client, self.kill = client, kill

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        if (round, client) == (1, self.client):
            if self.kill:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("store", "then"),
    [
        ("memory", "disk"),
        pytest.param("disk", "disk", marks=pytest.mark.slow),
        pytest.param("memory", "memory", marks=pytest.mark.slow),
        pytest.param("disk", "memory", marks=pytest.mark.slow),
    ],
)
def test_a_copied_half_round_survives_a_kill(
    call: Callable[..., Any], tmp_path: Path, store: str, then: str
) -> None:
    """A client that was served after the copy, and before the kill, is not served twice."""
    options = {"max_rounds": 2, "participation": Participation(), "store": store}
    with pytest.raises(Interrupted):
        call("fit", tmp_path, None, callbacks=[Stops("kitchen", kill=False)], **options)
    run = tmp_path / "tiny" / "version_0"
    shutil.copytree(run / "checkpoints", tmp_path / "copy")
    call("fit", tmp_path, "last", **options)
    path, options["store"] = tmp_path / "copy" / "round=0001-partial.ckpt", then
    with pytest.raises(KeyboardInterrupt):
        call("fit", tmp_path, path, callbacks=[Stops("hall", kill=True)], **options)
    last = find_checkpoint("last", run_root=run.parent)
    assert last == run.with_name("version_1") / "checkpoints" / "round=0001-partial.ckpt"
    call("fit", tmp_path, "last", **options)
    assert digests(checkpoint_of(run.with_name("version_1"))) == digests(checkpoint_of(run))


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"monitor": "clients/val/lost"}, "trainer.monitor 'clients/val/lost'"),
        ({"monitor": "hall/val/loss"}, "'clients/NAME/val/loss'"),
        ({"monitor": "server/val/macro_f1"}, "set trainer.monitor_mode to max"),
        ({"monitor_mode": "max"}, "set trainer.monitor_mode to min"),
        ({"participation": Participation(min_clients=3)}, "min_clients"),
    ],
)
def test_a_refused_run_leaves_everything_as_it_was(
    call: Callable[..., Any],
    base: Callable[[str, Path], Path],
    tmp_path: Path,
    values: dict[str, Any],
    said: str,
) -> None:
    run = base("memory", tmp_path)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for ckpt_path in (run / "checkpoints" / "round=0000.ckpt", None):
        with pytest.raises(ConfigurationError, match=said):
            call("fit", tmp_path, ckpt_path, **values)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]
