"""The same bits over a bad line: two network namespaces, loss, delay, a narrow band, a blackout."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.network.processes import Network, configuration, simulated

pytestmark = pytest.mark.slow
CLOUD, HOME = "mlecs-cloud", "mlecs-home"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def line() -> Iterator[str]:
    """Two namespaces joined by a line with 5 % loss, 300 ms there and back, and 1 Mbit/s.

    Its value is the server's address.
    """
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("needs root, ip and tc")
    for name in (CLOUD, HOME):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    try:
        ip("link", "add", "cloud0", "netns", CLOUD, "type", "veth", "peer", "home0", "netns", HOME)
        for name, link, address in (
            (CLOUD, "cloud0", "10.99.0.1/24"),
            (HOME, "home0", "10.99.0.2/24"),
        ):
            ip("-n", name, "addr", "add", address, "dev", link)
            ip("-n", name, "link", "set", link, "up")
            shape = ["loss", "5%", "delay", "150ms", "rate", "1mbit"]
            command = ["tc", "-n", name, "qdisc", "add", "dev", link, "root", "netem", *shape]
            subprocess.run(command, check=True, capture_output=True)
        yield "10.99.0.1"
    finally:
        for name in (CLOUD, HOME):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_a_bad_line_with_a_blackout_changes_no_bit(flower: Path, line: str, tmp_path: Path) -> None:
    config = configuration()
    network = Network(tmp_path / "there", config, flower)
    network.host = line
    network.prefix = {
        "server": ["ip", "netns", "exec", CLOUD],
        **{client: ["ip", "netns", "exec", HOME] for client in network.clients},
    }

    def blackout() -> None:
        """Cut the line for 30 s, once the first round has ended."""
        while not list(network.folder.glob("server/net/version_0/checkpoints/round=0000*")):
            time.sleep(0.1)
        ip("-n", HOME, "link", "set", "home0", "down")
        time.sleep(30)
        ip("-n", HOME, "link", "set", "home0", "up")

    threading.Thread(target=blackout, daemon=True).start()
    codes = network.run(seconds=500)
    assert codes == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    assert network.state() == simulated(tmp_path / "here", config)
