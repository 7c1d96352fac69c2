"""A run on a disk that is really full: it says so, and goes on when there is room."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlecs_lightning import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.checkpoints.checkpoint import load_checkpoint
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.storage.files import FullDiskError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB; only root may mount one."""
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


class Fills(FederatedCallback):
    """Leaves so many bytes of the disk when a hook is called."""

    def __init__(self, disk: Path, hook: str, *, left: int) -> None:
        def fill(**facts: object) -> None:
            size = shutil.disk_usage(disk).free - left
            if not (disk / "ballast").exists():
                (disk / "ballast").write_bytes(bytes(size))

        setattr(self, hook, fill)


CASES = {
    "checkpoint": ("on_aggregate", 40_000, "round=0000.ckpt", "memory"),
    "state of a client": ("on_client_end", 40_000, "@0000.pt", "disk"),
    "message": ("on_client_end", 3_000, ".message", "memory"),
    "adapter": ("on_round_end", 12_000, "adapters/", "memory"),
    "log": ("on_round_end", 0, "", "memory"),
}


SLOW = ("state of a client", "adapter", "log")


@pytest.mark.parametrize(
    ("hook", "left", "named", "store"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, case in CASES.items()
    ],
)
def test_a_run_that_finds_the_disk_full_goes_on_when_there_is_room(
    tiny: SimpleNamespace, disk: Path, hook: str, left: int, named: str, store: str
) -> None:
    algorithm = FedAvg(steps=tiny.steps())
    values = {"enable_checkpointing": True, "logger": True, "store": store}
    fills = Fills(disk, hook, left=left)
    with pytest.raises(FullDiskError) as caught:
        tiny.fit(algorithm, disk, callbacks=[fills], **values)
    text = str(caught.value)
    assert f"'{disk}" in text
    assert named in text
    assert "No space left on device" in text
    assert list(disk.rglob("*.tmp")) == []
    for path in disk.rglob("*.ckpt"):
        load_checkpoint(path)
    (disk / "ballast").unlink()
    trainer = tiny.trainer(disk, **values)
    summary = trainer.fit(algorithm, tiny.data(), tiny.parties(), ckpt_path="last")
    assert summary["rounds"] == 1
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
    with pytest.raises(FullDiskError, match="out"):
        export_run(disk / "tiny" / "version_0", disk / "out", client="hall")
    assert not (disk / "out").exists()
    assert list(disk.rglob("*.tmp")) == []
