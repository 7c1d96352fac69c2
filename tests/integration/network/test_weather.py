"""The same bits over a bad line: delay, a narrow band, connections that break, a blackout.

A proxy stands between devices and server, since `tc netem` is not in every kernel. Below TCP, a
lost packet is no more than a delay; here whole connections are lost instead.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlecs_lightning.network.flower.processes import free_port
from tests.integration.network.processes import Network, configuration, simulated

pytestmark = pytest.mark.slow

DELAY = 0.15
BYTES_PER_SECOND = 125_000  # 1 Mbit/s, of each connection and direction
BREAKS = 0.01
BLACKOUT = 30.0


class Line:
    """A proxy to a port of this machine; `cut` breaks all connections, and lets none through."""

    def __init__(self, target: int) -> None:
        self.port, self.target, self.is_cut = free_port(), target, False
        self.broken = 0
        self._draw = random.Random(7)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        start = asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self._loop.run_until_complete(start)
        self._loop.run_forever()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self, seconds: float) -> None:
        self.is_cut = True
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(writer.transport.abort)
        time.sleep(seconds)
        self.is_cut = False

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        both = (self._pump(reader, far_writer), self._pump(far_reader, writer))
        await asyncio.gather(*both)
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16384):
                await asyncio.sleep(DELAY + len(data) / BYTES_PER_SECOND)
                if self._draw.random() < BREAKS:
                    self.broken += 1
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
def line_to() -> Iterator[Callable[[int], Line]]:
    opened: list[Line] = []

    def call(port: int) -> Line:
        opened.append(Line(port))
        return opened[-1]

    yield call
    for line in opened:
        line.close()


def test_a_bad_line_with_a_blackout_changes_no_bit(
    flower: Path, line_to: Callable[[int], Line], tmp_path: Path
) -> None:
    config = configuration()
    network = Network(tmp_path / "there", config, flower)
    line = line_to(network.port)
    network.dialled = line.port

    def blackout() -> None:
        """Cut the line once the first round has ended."""
        while not list(network.folder.glob("server/net/version_0/checkpoints/round=0000*")):
            time.sleep(0.1)
        line.cut(BLACKOUT)

    threading.Thread(target=blackout, daemon=True).start()
    codes = network.run(seconds=500)
    assert codes == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    assert line.broken, "no connection broke"
    assert network.state() == simulated(tmp_path / "here", config)
