"""The script that joins two network namespaces, where there may be any."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script(repo_root: Path) -> Path:
    return repo_root / "scripts" / "two_nodes.py"


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines() if line.startswith("mlecs-")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Skips where there are no namespaces to be had, and fails where the script leaves some."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    if subprocess.run(["ip", "netns", "add", "mlecs-probe"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make network namespaces")
    subprocess.run(["ip", "netns", "del", "mlecs-probe"], check=True)
    before = namespaces()
    yield
    assert namespaces() == before


def test_without_root_it_says_what_it_needs(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert runpy.run_path(str(script))["main"]([]) == 2
    assert "network namespaces need root and iproute2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_warmup_and_fit_on_two_nodes_are_those_of_one_process(
    script: Path, nothing_left: None, processes: int
) -> None:
    ran = subprocess.run(
        [sys.executable, script, "--processes", str(processes)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1] == "both nodes and one process agree"
    for command in ("warmup", "fit"):
        said = [line.split() for line in lines if line.startswith(command) and " rank " in line]
        assert len(said) == 2 * processes
        assert {line[2] for line in said} == {"0", "1"}
        assert sorted(line[line.index("rank") + 1] for line in said) == [
            str(n) for n in range(2 * processes)
        ]
        assert len({line[-1] for line in said}) == 1


@pytest.mark.slow
def test_stopped_in_the_middle_it_leaves_no_namespace(script: Path, nothing_left: None) -> None:
    before = namespaces()
    with subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL) as process:
        while len(namespaces() - before) < 2:
            assert process.poll() is None
            time.sleep(0.1)  # a poll, not a wait for something that might be late
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
