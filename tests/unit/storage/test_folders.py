import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlecs_lightning.storage.folders import claim_folder, numbered_folders

FOREIGN = (
    *("version_0_backup", "version_", "version", "version_-1", "version_01", "version_1.old"),
    *("my_version_7", "version_7 ", "version_\u0663", "Version_9", "abandoned_9", "version_1_2"),
)


@pytest.mark.parametrize("foreign", [(), *((name,) for name in FOREIGN), FOREIGN])
def test_folders_of_other_names_are_somebody_elses(
    tmp_path: Path, foreign: tuple[str, ...]
) -> None:
    for name in ("version_10", "version_2", *foreign):
        (tmp_path / name).mkdir()
    assert [p.name for p in numbered_folders(tmp_path, "version")] == ["version_2", "version_10"]
    assert claim_folder(tmp_path, "version") == tmp_path / "version_11"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["version_2", "version_10", "version_11", *foreign]
    )


def test_a_file_of_such_a_name_is_no_folder_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "version_0").write_text("mine")
    assert numbered_folders(tmp_path, "version") == []
    assert claim_folder(tmp_path, "version").name == "version_1"
    assert (tmp_path / "version_0").read_text() == "mine"


def test_the_first_claim_makes_the_parent(tmp_path: Path) -> None:
    assert numbered_folders(tmp_path / "a" / "b", "abandoned") == []
    assert claim_folder(tmp_path / "a" / "b", "abandoned").name == "abandoned_0"
    assert claim_folder(tmp_path / "a" / "b", "abandoned").name == "abandoned_1"


_CLAIM = """
import sys, time
from pathlib import Path
from mlecs_lightning.storage.folders import claim_folder
at, root = float(sys.argv[1]), Path(sys.argv[2])
time.sleep(max(0.0, at - time.time()))
print(*(claim_folder(root, "version").name for _ in range(5)))
"""


def test_processes_that_claim_at_once_get_a_folder_each(tmp_path: Path) -> None:
    for name in ("version_2", "version_2_backup"):
        (tmp_path / "x" / name).mkdir(parents=True)
    command = [sys.executable, "-c", _CLAIM, str(time.time() + 1), str(tmp_path / "x")]
    claimers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    claimed = [name for each in claimers for name in each.communicate(timeout=60)[0].split()]
    assert len(claimed) == 40
    assert set(claimed) == {f"version_{k}" for k in range(3, 43)}
