"""Server and devices in network namespaces of their own, with a real TCP stack on a bad line."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.network import weather
from tests.integration.network.processes import Network, configuration, simulated

pytestmark = pytest.mark.slow

DELAY, LOSS, BITS, BLACKOUT = 0.3, 0.05, 1e6, 30.0


@pytest.fixture
def line() -> Iterator[subprocess.Popen[str]]:
    """The process that carries packets; it has told its namespaces in ``args``."""
    words = [weather.__file__, *map(str, (DELAY, LOSS, BITS, 7))]
    with subprocess.Popen(
        [sys.executable, *words], stdin=-1, stdout=-1, stderr=-1, text=True
    ) as process:
        yield process
        process.kill()


def test_packets_that_are_lost_and_a_blackout_change_no_bit(
    flower: Path, line: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert line.stdout is not None
    assert line.stderr is not None
    told = line.stdout.readline().split()
    if not told:
        pytest.skip(f"network namespaces are not permitted: {line.stderr.read().splitlines()[-1]}")
    pid, ours, theirs = told
    config = configuration()
    network = Network(tmp_path / "there", config, flower)
    network.host = weather.ADDRESSES[0]
    for party in ("server", *network.clients):
        own = ours if party == "server" else theirs
        network.within[party] = ["nsenter", f"--net=/proc/{pid}/fd/{own}"]

    def blackout() -> None:
        """Cut the line once the first round has ended."""
        while not list(network.folder.glob("server/net/version_0/checkpoints/round=0000*")):
            time.sleep(0.1)
        print(BLACKOUT, file=line.stdin, flush=True)

    threading.Thread(target=blackout, daemon=True).start()
    codes = network.run(seconds=500)
    assert codes == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    (counts, _) = line.communicate("", timeout=10)
    up, up_lost, down, down_lost = map(int, counts.split())
    print(f"packets: {up} and {down} carried, {up_lost} and {down_lost} lost")
    for carried, lost in ((up, up_lost), (down, down_lost)):
        assert lost > LOSS / 2 * carried
    assert network.state() == simulated(tmp_path / "here", config)
