"""Every file of a run folder, damaged: a clear error, or the same bits."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning import FedAvg, load_exported
from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.checkpoints.checkpoint import (
    client_state,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mlecs_lightning.checkpoints.client_store import DiskStore, MemoryStore
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.checkpoints.warmup import read_warmup
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.warmup import ServerWarmup
from mlecs_lightning.report.results.reading import ReportError, read_runs
from mlecs_lightning.storage.digests import check_folder, load_safetensors, read_checked
from mlecs_lightning.storage.files import DamagedFileError

CLEAR = (CheckpointError, ConfigurationError, DamagedFileError, ReportError)
Reader = Callable[[Path], object]


def bits(value: Any) -> Any:  # noqa: ANN401 - a nested state
    """Return a state as plain values that can be compared bit by bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [bits(v) for v in value]
    return repr(value)


@pytest.fixture(scope="module")
def left(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a run with states on disk leaves, with an export and a warm-up beside it."""
    root = tmp_path_factory.mktemp("left")
    values: dict[str, Any] = {"enable_checkpointing": True, "store": "disk", "logger": True}
    algorithm, data = FedAvg(steps=tiny.steps(warmup=1)), tiny.data()
    trainer = tiny.trainer(root, max_rounds=2, **values)
    trainer.config = {"seed_everything": 0, "clients": {"hall": {"modalities": ["fourier"]}}}
    trainer.fit(algorithm, data, tiny.parties())
    trainer.predict(algorithm, data, tiny.parties(), "last")
    run = root / "tiny" / "version_0"
    export_run(run, run / "exported", client="hall")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    warm = ServerWarmup({**quiet, "accelerator": "cpu", "default_root_dir": root / "warm"})
    path = warm.warmup(algorithm, data, tiny.parties())
    assert path is not None
    shutil.copy(path, run / "warmup.ckpt")
    return SimpleNamespace(run=run, server=warm.module)


def reader_of(path: Path, left: SimpleNamespace) -> Reader | None:
    """Return how the package reads a file of a run; ``None`` if it never does."""
    name = path.relative_to(left.run).as_posix()
    table: list[tuple[Callable[[str], bool], Reader]] = [
        (lambda n: n == "warmup.ckpt", lambda p: read_warmup(p, left.server, key="trainer")),
        (lambda n: n.endswith(".ckpt"), load_checkpoint),
        (
            lambda n: n.endswith(".pt"),
            lambda p: client_state(p.name, p.parents[1] / "round=0001.ckpt"),
        ),
        (lambda n: n.startswith("exported/"), lambda p: exported(p, left.run)),
        (lambda n: n.endswith("/modules.json"), reported),
        (lambda n: n.startswith("adapters/"), adapter),
        (lambda n: n in ("config.yaml", "summary.json", "metrics.csv"), reported),
        (lambda n: n == "SHA256SUMS", reported),
        (lambda n: n == "predictions.jsonl", read_checked),
    ]
    return next((read for fits, read in table if fits(name)), None)


def exported(path: Path, run: Path) -> object:
    folder = run / "exported"
    model = load_exported(folder)
    return [model.module.trainable_state(), model.config]


def adapter(path: Path) -> object:
    """What a user does who is given the folder: check it, then read it."""
    check_folder(path.parent)
    return load_safetensors(path.parent / "adapter_model.safetensors")


def reported(path: Path) -> object:
    (run,) = read_runs([path.parent])
    return asdict(run)


def damages(whole: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield what may become of a file, without end."""
    while True:
        at = rng.randrange(len(whole))
        if rng.random() < 0.25:
            yield whole[:at]
        else:
            yield whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]


def files_of(left: SimpleNamespace) -> list[Path]:
    return [p for p in sorted(left.run.rglob("*")) if p.is_file()]


def test_every_file_has_a_reader_or_is_never_read(left: SimpleNamespace) -> None:
    unread = [p.name for p in files_of(left) if reader_of(p, left) is None]
    assert [name.partition(".out.")[0] for name in unread] == ["events"]  # TensorBoard's own
    read = {p.name for p in files_of(left)} - set(unread)
    assert {
        *("config.yaml", "summary.json", "metrics.csv", "predictions.jsonl", "SHA256SUMS"),
        *("round=0001.ckpt", "hall@0001.pt", "adapter_model.safetensors", "adapter_config.json"),
        *("mlecs_config.json", "mlecs_model.safetensors", "model.safetensors", "tokenizer.json"),
        "warmup.ckpt",
    } <= read


@pytest.mark.parametrize("times", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_file_is_told_or_gives_the_same_bits(left: SimpleNamespace, times: int) -> None:
    rng = random.Random(times)
    files = [p for p in files_of(left) if reader_of(p, left) is not None]
    sound: dict[Path, object] = {}
    told: list[tuple[str, str]] = []
    for number, path in enumerate(files[n % len(files)] for n in range(times)):
        read = reader_of(path, left)
        assert read is not None
        if path not in sound:
            sound[path] = bits(read(path))
        whole = path.read_bytes()
        damaged = next(damages(whole, rng))
        path.write_bytes(damaged)
        try:
            assert bits(read(path)) == sound[path], f"{number}: {path} in silence"
        except CLEAR as error:
            told.append((path.name, str(error)))
        finally:
            path.write_bytes(whole)
    assert [each for each in told if each[0] not in each[1]] == []  # it says which file
    assert len(told) > times / 2  # most bits are of content


@pytest.mark.parametrize("times", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_file_of_an_earlier_version_breaks_no_report(
    left: SimpleNamespace, tmp_path: Path, times: int
) -> None:
    """Without digests its content may be another; what cannot be is told, and nothing crashes."""
    rng = random.Random(times)
    names = ("config.yaml", "summary.json", "metrics.csv")
    for name in names:
        shutil.copy(left.run / name, tmp_path / name)
    told = []
    for number in range(times):
        path = tmp_path / names[number % len(names)]
        whole = path.read_bytes()
        path.write_bytes(next(damages(whole, rng)))
        try:
            read_runs([tmp_path])
        except ReportError as error:
            told.append(str(error))
        finally:
            path.write_bytes(whole)
    assert [text for text in told if str(tmp_path) not in text] == []
    assert told


# What to go on from -------------------------------------------------------------------------------


def checkpoints(tmp_path: Path, *, disk: bool = False) -> Path:
    """Write three complete checkpoints and a partial one."""
    folder = tmp_path / "version_0" / "checkpoints"
    store = DiskStore(folder / "clients")
    for number in range(4):
        store.put("hall", {"x": torch.ones(5)}, round=number)
        state = {"clients": store.state_dict() if disk else {}, "x": torch.ones(9)}
        save_checkpoint(folder, state, round=number, complete=number < 3)
    return folder


def harm(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(torch.ones(2).numpy().tobytes(), b"12345678"))


@pytest.mark.parametrize(
    ("harmed", "sound"),
    [
        (["round=0003-partial.ckpt"], "round=0002.ckpt"),
        (["round=0003-partial.ckpt", "round=0002.ckpt"], "round=0001.ckpt"),
        (["round=0001.ckpt"], "round=0003-partial.ckpt"),
        (["round=0003-partial.ckpt", "clients/hall@0002.pt"], "round=0001.ckpt"),
    ],
)
def test_a_damaged_checkpoint_names_the_newest_sound_one(
    tmp_path: Path, harmed: list[str], sound: str
) -> None:
    folder = checkpoints(tmp_path, disk=True)
    for name in harmed:
        harm(folder / name)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder / harmed[0])
    text = str(caught.value)
    assert f"'{folder / harmed[0]}' is damaged" in text
    assert f"the newest sound one beside it is --ckpt_path {folder / sound}" in text
    load_checkpoint(folder / sound)


def test_a_damaged_state_of_a_client_names_it_too(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path, disk=True)
    last = find_checkpoint("last", run_root=tmp_path)
    for harmed in (lambda p: harm(p), lambda p: p.unlink()):
        harmed(folder / "clients/hall@0003.pt")
        with pytest.raises(CheckpointError) as caught:
            client_state(load_checkpoint(last)["clients"]["hall"], last)
        assert "hall@0003.pt" in str(caught.value)
        assert f"--ckpt_path {folder / 'round=0002.ckpt'}" in str(caught.value)


def test_without_a_sound_one_there_is_only_a_new_beginning(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path)
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"damaged.*: \w.*\n.*no sound one .* begin anew"):
        load_checkpoint(folder / "round=0002.ckpt")


def test_a_run_is_told_before_it_begins(
    tiny: SimpleNamespace, left: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(left.run, tmp_path / "tiny" / "version_0")
    folder = tmp_path / "tiny" / "version_0" / "checkpoints"
    path = folder / "clients" / "hall@0001.pt"
    path.write_bytes(path.read_bytes()[:-30])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    trainer = tiny.trainer(tmp_path, max_rounds=3, store="disk", enable_checkpointing=True)
    algorithm = FedAvg(steps=tiny.steps(warmup=1))
    for entry in (trainer.fit, trainer.test, trainer.validate, trainer.predict):
        with pytest.raises(CheckpointError, match=r"hall@0001\.pt.*\n.*round=0000\.ckpt"):
            entry(algorithm, tiny.data(), tiny.parties(), ckpt_path="last")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# Messages of a round under way --------------------------------------------------------------------


@pytest.mark.parametrize("make", [MemoryStore, DiskStore])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"lonh"),
        lambda path: path.write_bytes(b"lon"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["flipped", "cut", "empty", "gone"],
)
def test_a_damaged_message_names_client_and_file(
    tmp_path: Path, make: Callable[[Path], MemoryStore], damage: Callable[[Path], object]
) -> None:
    store = make(tmp_path)
    store.put_message("hall", b"long")
    store.put_message("attic", b"other")
    damage(tmp_path / "hall.message")
    with pytest.raises(DamagedFileError, match=r"client 'hall'.*hall\.message.*--ckpt_path last"):
        store.message("hall")
    assert store.message("attic") == b"other"
    store.drop_messages()
    assert list(tmp_path.iterdir()) == []


# Edited, not damaged ------------------------------------------------------------------------------


def test_an_edited_configuration_begins_a_run_but_is_in_no_report(
    left: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlecs_lightning.cli.config import completed

    run = Path(shutil.copytree(left.run, tmp_path / "run"))
    config = run / "config.yaml"
    completed(["--config", str(config)])
    assert caplog.records == []
    config.write_text(config.read_text().replace("seed_everything: 0", "seed_everything: 1"))
    merged = completed(["--config", str(config)])
    assert json.loads(merged[-1].partition("=")[2]) == {"hall": {"modalities": ["fourier"]}}
    assert "has been edited since its run wrote it" in caplog.text
    with pytest.raises(ReportError, match=r"config\.yaml cannot be read: .*delete its line in"):
        read_runs([run])
