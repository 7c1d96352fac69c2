"""One list of checkpoints, and what becomes of later ones when a run goes back."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import (
    checkpoint_of,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mlecs_lightning.checkpoints.client_store import DiskStore, MemoryStore
from mlecs_lightning.checkpoints.timeline import (
    checkpoints,
    last_round_of,
    prune_checkpoints,
    set_aside,
)
from mlecs_lightning.federated.run import client_state

LOSS = Monitor("clients/val/loss")
LOSSES = [0.5, 0.2, 0.4, 0.3]
# Who takes part: nobody in every round, one late, one in the first alone.
TAKE_PART = [("early", "often"), ("often",), ("late",), ("often", "late")]


class Writer:
    """Writes what a run writes, with one number in the place of every model.

    Attributes:
        states: The number of each client by the name of the checkpoint.
    """

    def __init__(self, run: Path, *, store: str, top_k: int = -1, life: int = 1) -> None:
        self.run, self.folder, self.top_k, self.life = run, run / "checkpoints", top_k, life
        self.store: DiskStore | MemoryStore = (
            DiskStore(self.folder / "clients") if store == "disk" else MemoryStore(self.folder)
        )
        self.history: list[dict[str, float]] = []
        self.states: dict[str, dict[str, float]] = {}

    def go_on(self, path: Path) -> None:
        """Go on in place, as `Run.restore` and `Run.begin` do."""
        state = load_checkpoint(path)
        self.history = list(state["history"])
        for client, saved in state["clients"].items():
            kept = client_state(saved, path)
            self.store.put(client, kept, round=last_round_of(client, state))
        set_aside(self.run, state)

    def serve(self, number: int, clients: tuple[str, ...]) -> None:
        for client in clients:
            self.store.put(client, {"x": self.life * 100 + number}, round=number)
            self.store.put_message(client, b"sent")

    def save(self, number: int, partial: dict[str, Any] | None = None) -> Path:
        state: dict[str, Any] = {
            "history": list(self.history),
            "monitor": LOSS.name,
            "life": self.life,
            "clients": self.store.state_dict(),
        }
        complete = partial is None
        rest = {} if complete else {"partial": partial}
        path = save_checkpoint(self.folder, state | rest, round=number, complete=complete)
        kept = prune_checkpoints(self.folder, self.history, monitor=LOSS, save_top_k=self.top_k)
        if complete and self.top_k >= 0:
            self.store.prune(kept)
        return path

    def round(self, number: int) -> None:
        self.serve(number, TAKE_PART[number])
        self.history.append({"round": number, LOSS.name: LOSSES[number]})
        self.store.drop_messages()
        self.save(number)

    def end(self) -> None:
        (self.run / "summary.json").write_text(
            json.dumps({"rounds": len(self.history), "life": self.life})
        )
        (self.run / "adapters" / "early").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.csv", "config.yaml", f"events.out.tfevents.{self.life}"):
            (self.run / name).write_text(str(self.life))


def a_run(run: Path, *, store: str, rounds: int = 4, top_k: int = -1) -> Writer:
    writer = Writer(run, store=store, top_k=top_k)
    for number in range(rounds):
        writer.round(number)
    writer.end()
    return writer


def models(path: Path) -> tuple[int, dict[str, float]]:
    """Return the life that wrote a checkpoint, and the numbers of its clients, all of them read."""
    state = load_checkpoint(path)
    clients = {c: client_state(s, path)["x"] for c, s in state["clients"].items()}
    return state["life"], clients


def expected(back_to: int, last: int) -> dict[str, float]:
    """Return the numbers of the clients after going back to a round and on to another."""
    return {
        client: (200 if number > back_to else 100) + number
        for number in range(last + 1)
        for client in TAKE_PART[number]
    }


# The list -----------------------------------------------------------------------------------------


def test_the_list_is_in_the_order_of_the_rounds_and_holds_nothing_else(tmp_path: Path) -> None:
    names = ["round=0002-partial.ckpt", "round=0002.ckpt", "round=9999.ckpt", "round=10000.ckpt"]
    foreign = ["round=0003.tmp", "round=1.ckpt.bak", "best.ckpt", "round=x.ckpt", "round=2-p.ckpt"]
    for name in reversed(names + foreign):
        (tmp_path / name).touch()
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "round=0009.ckpt").touch()
    assert [each.path.name for each in checkpoints(tmp_path)] == names
    assert checkpoints(tmp_path / "none") == []


def test_last_best_and_export_pass_by_folders_that_are_no_version(tmp_path: Path) -> None:
    run = tmp_path / "version_1"
    a_run(run, store="memory")
    for name in ("version_1_backup", "version_7.old", "version_x", "version_02"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "version_9").write_text("a file")
    assert find_checkpoint("last", run_root=tmp_path) == run / "checkpoints" / "round=0003.ckpt"
    assert find_checkpoint("best", run_root=tmp_path) == run / "checkpoints" / "round=0001.ckpt"
    assert checkpoint_of(run) == run / "checkpoints" / "round=0003.ckpt"


# Going back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "top_k"), [*product(("memory", "disk"), (-1, 0, 1, 2))])
@pytest.mark.parametrize("back_to", range(4))
def test_last_is_what_was_written_last(
    tmp_path: Path, back_to: int, top_k: int, store: str
) -> None:
    """After every new round, and with every checkpoint that is left still whole."""
    run, old = tmp_path / "version_0", a_run(tmp_path / "version_0", store=store)
    again = Writer(run, store=store, top_k=top_k, life=2)
    again.go_on(old.folder / f"round={back_to:04d}.ckpt")
    for number in range(back_to, 4):
        if number > back_to:
            again.round(number)
        last = find_checkpoint("last", run_root=tmp_path)
        assert models(last) == (1 + (number > back_to), expected(back_to, number))
        assert checkpoint_of(run) == last
        ranked = [r for r in LOSS.ranked(again.history) if r <= number]
        best = find_checkpoint("best", run_root=tmp_path)
        if top_k:  # what was pruned before cannot be the best of those that are left
            assert best.name == f"round={ranked[0]:04d}.ckpt"
        for each in checkpoints(again.folder):
            life, clients = models(each.path)
            assert life == 1 + (each.round > back_to)
            assert clients == expected(back_to, each.round)
    left = [each.round for each in checkpoints(again.folder)]
    # Pruning begins with the first new round.
    all_of_them = top_k < 0 or back_to == 3
    assert left == (list(range(4)) if all_of_them else sorted({3, *ranked[:top_k]}))


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("back_to", range(4))
def test_what_is_set_aside_is_a_run_folder_of_its_own(
    tmp_path: Path, back_to: int, store: str
) -> None:
    run, old = tmp_path / "version_0", a_run(tmp_path / "version_0", store=store)
    again = Writer(run, store=store, top_k=0, life=2)
    again.go_on(old.folder / f"round={back_to:04d}.ckpt")
    aside = run / "abandoned_0"
    if back_to == 3:
        assert not aside.exists(), "nothing came after it"
        assert (run / "summary.json").exists()
        return
    for number in range(back_to + 1, 4):
        again.round(number)
    assert [each.round for each in checkpoints(aside / "checkpoints")] == [*range(back_to + 1, 4)]
    for each in checkpoints(aside / "checkpoints"):
        assert models(each.path) == (1, expected(9, each.round))
    assert checkpoint_of(aside).name == "round=0003.ckpt"
    told = {"summary.json", "metrics.csv", "events.out.tfevents.1", "adapters"}
    assert {p.name for p in aside.iterdir()} == {*told, "config.yaml", "checkpoints"}
    assert {p.name for p in run.iterdir()} == {"config.yaml", "checkpoints", "abandoned_0"}


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("back_to", [0, 1])
def test_in_the_middle_of_a_round(tmp_path: Path, back_to: int, store: str) -> None:
    """From a partial checkpoint nothing is set aside; to before one, it is, with its clients."""
    run, old = tmp_path / "version_0", a_run(tmp_path / "version_0", store=store, rounds=2)
    old.serve(2, ("late", "often"))
    partial = {"late": {"message": torch.zeros(1)}}
    old.save(2, partial)
    old.serve(2, ("early",))  # killed after this: no checkpoint knows of it
    before = models(old.folder / "round=0002-partial.ckpt")

    on = Writer(run, store=store, life=2)
    on.go_on(find_checkpoint("last", run_root=tmp_path))
    assert not (run / "abandoned_0").exists()
    assert models(find_checkpoint("last", run_root=tmp_path)) == before
    assert [p.stem for p in on.folder.rglob("*.message")] == ["late"]
    if store == "disk":
        assert not (on.folder / "clients" / "early@0002.pt").exists()

    back = Writer(run, store=store, life=2)
    back.go_on(old.folder / f"round={back_to:04d}.ckpt")
    assert [each.round for each in checkpoints(back.folder)] == list(range(back_to + 1))
    (aside,) = run.glob("abandoned_*")
    assert models(aside / "checkpoints" / "round=0002-partial.ckpt") == before
    assert list(back.folder.rglob("*.message")) == []
    back.round(back_to + 1)
    assert models(find_checkpoint("last", run_root=tmp_path)) == (2, expected(back_to, back_to + 1))


class Cut:
    """Lets a number of changes to the disk happen, and kills before the next."""

    def __init__(self, after: int) -> None:
        self.left = after

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **values: Any) -> Any:  # noqa: ANN401 - any function
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return function(*args, **values)

        return guarded


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_kill_while_setting_aside_loses_nothing_and_leaves_a_sound_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path / "run" / "version_0", store=store)
    for step in count():
        root = tmp_path / str(step)
        shutil.copytree(tmp_path / "run", root)
        run = root / "version_0"
        state = load_checkpoint(run / "checkpoints" / "round=0000.ckpt")
        cut = Cut(step)
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            for place, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "link")):
                patch.setattr(place, name, cut.guard(getattr(place, name)))
            set_aside(run, state)
        rounds = [each.round for each in checkpoints(run / "checkpoints")]
        assert rounds == list(range(len(rounds))), "the run ends earlier than it did"
        found = {}
        for folder in (run, *run.glob("abandoned_*")):
            for each in checkpoints(folder / "checkpoints"):
                assert models(each.path) == (1, expected(9, each.round))
                found[each.round] = each.path
        assert set(found) == {0, 1, 2, 3}
        again = Writer(run, store=store, top_k=0, life=2)
        again.go_on(run / "checkpoints" / "round=0000.ckpt")
        again.round(1)
        assert models(find_checkpoint("last", run_root=root)) == (2, expected(0, 1))
        if cut.left:
            break
    assert step > 8, "there were steps to be killed at"


def test_where_files_cannot_have_two_names_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = tmp_path / "version_0", a_run(tmp_path / "version_0", store="disk")

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    Writer(run, store="disk").go_on(old.folder / "round=0000.ckpt")
    path = run / "abandoned_0" / "checkpoints" / "round=0003.ckpt"
    assert models(path) == (1, expected(9, 3))
    assert models(old.folder / "round=0000.ckpt") == (1, expected(9, 0))


@pytest.mark.parametrize(
    ("rounds", "moved"), [(4, True), (1, False), (0, False), ("many", False), (None, False)]
)
def test_a_summary_of_later_rounds_goes_too(tmp_path: Path, rounds: object, moved: bool) -> None:
    """As where those rounds were run without checkpoints."""
    old = a_run(tmp_path, store="memory", rounds=1)
    (tmp_path / "summary.json").write_text(json.dumps({"rounds": rounds}))
    Writer(tmp_path, store="memory").go_on(old.folder / "round=0000.ckpt")
    assert (tmp_path / "summary.json").exists() != moved
    assert (tmp_path / "abandoned_0" / "summary.json").exists() == moved
