"""Who is not who they say they are: refused by Flower or by us, and nobody else is harmed."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.network.processes import MLECS, Network, configuration

pytestmark = pytest.mark.slow


def make_keys(folder: Path, *words: str) -> None:
    command = [*MLECS, "keys", *words, "--dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def stranger(network: Network, own: Path) -> None:
    """A key that the server has never seen."""
    make_keys(own, "device", "kitchen")
    shutil.copy(network.folder / "keys" / "ca.pem", own)


def other_authority(network: Network, own: Path) -> None:
    """The right key, and another authority: the device must not talk to this server."""
    make_keys(own, "server")
    shutil.copy(network.folder / "keys" / "kitchen.key", own)


def other_name(network: Network, own: Path) -> None:
    """The key of another client."""
    own.mkdir()
    shutil.copy(network.folder / "keys" / "ca.pem", own)
    shutil.copy(network.folder / "keys" / "hall.key", own / "kitchen.key")


CASES: dict[str, tuple[Callable[[Network, Path], None], list[str], dict[str, tuple[str, str]]]] = {
    "stranger": (stranger, ["kitchen", "hall"], {"kitchen": ("dropout", "")}),
    "other authority": (other_authority, ["kitchen", "hall"], {"kitchen": ("dropout", "")}),
    "other name": (
        other_name,
        ["kitchen"],
        {"kitchen": ("dropout", ""), "hall": ("refused", "uplink")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_device_that_is_not_who_it_says_takes_no_part(
    flower: Path, tmp_path: Path, name: str
) -> None:
    falsify, devices, expected = CASES[name]
    config = configuration()
    config["trainer"]["max_rounds"] = 1
    network = Network(tmp_path, config, flower)
    network.make_keys()
    network.keys["kitchen"] = tmp_path / "own"
    falsify(network, tmp_path / "own")
    network.options["server"] = ["--deadline", "60"]
    for party in ("server", *devices):
        network.start(party)
    server = network.running["server"]
    start = time.monotonic()
    try:
        while server.poll() is None and time.monotonic() - start < 240:
            time.sleep(0.2)
    finally:
        for process in network.running.values():
            process.terminate()
            process.wait()
    assert server.returncode == 0, network.log("server")
    told = json.loads((tmp_path / "server/net/version_0/summary.json").read_text())["faults"]
    found = {event["client"]: (event["kind"], event["stage"]) for event in told["events"]}
    assert found == expected
    if name == "other authority":
        assert "its certificate is of another authority" in network.log("kitchen")
    if name == "other name":
        said = tmp_path / "server/net/version_0/clients/hall/errors.log"
        assert "it says that it is client 'kitchen'" in said.read_text()
