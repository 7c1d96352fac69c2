"""Two network namespaces, and a bad line between them, in user space.

    python weather.py DELAY LOSS BITS_PER_SECOND SEED

Each namespace has a TUN device; this process carries the packets from one to the other, so that a
real TCP stack sees delay, a narrow band and lost packets. That is what `tc netem` does, which not
every kernel has. It prints its own process id and the file descriptors of both namespaces, for
``nsenter --net=/proc/PID/fd/FD``. A number on standard input cuts the line for so many seconds; at
the end of the input it prints how many packets it has carried and lost.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

__all__ = ["ADDRESSES"]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
IFF_UP, IFF_RUNNING = 0x1, 0x40
QUEUE = 0.5  # seconds that the narrow band holds back; what comes on top is lost, as in a router


def configure(name: str, address: str = "") -> None:
    """Give an interface of this namespace an address, and switch it on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def set_address(request: int, value: str) -> None:
            where = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, struct.pack("16s16s", name.encode(), where))

        if address:
            set_address(SIOCSIFADDR, address)
            set_address(SIOCSIFNETMASK, "255.255.255.0")
        flags = struct.pack("16sh", name.encode(), IFF_UP | IFF_RUNNING)
        fcntl.ioctl(control, SIOCSIFFLAGS, flags)


def namespace(address: str) -> tuple[int, int]:
    """Enter a new namespace; return its file descriptor, and that of its TUN device."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no namespaces")
    own, tun = os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"line", IFF_TUN | IFF_NO_PI))
    configure("lo")
    configure("line", address)
    os.set_blocking(tun, False)
    return own, tun


@dataclass
class Direction:
    """Packets from one end to the other, in the order in which they arrive."""

    source: int
    target: int
    free: float = 0.0  # when the narrow band has passed all that was sent
    carried: int = 0
    lost: int = 0
    flying: list[tuple[float, int, bytes]] = field(default_factory=list)

    def take(self, *, delay: float, bits: float, lost: bool) -> None:
        packet, now = os.read(self.source, 65536), time.monotonic()
        start = max(now, self.free)
        if lost or start - now > QUEUE:
            self.lost += 1
            return
        self.carried += 1
        self.free = start + 8 * len(packet) / bits
        heapq.heappush(self.flying, (self.free + delay, self.carried, packet))

    def land(self) -> float:
        """Hand over what is due; return the seconds until the next packet."""
        while self.flying and self.flying[0][0] <= time.monotonic():
            os.write(self.target, heapq.heappop(self.flying)[2])
        return self.flying[0][0] - time.monotonic() if self.flying else 1.0


def main(delay: float, loss: float, bits: float, seed: int) -> None:
    """Carry packets until the standard input ends."""
    draw, cut_until = random.Random(seed), 0.0
    (one, tun), (other, far) = (namespace(address) for address in ADDRESSES)
    print(os.getpid(), one, other, flush=True)
    ways = {tun: Direction(tun, far), far: Direction(far, tun)}
    chosen = selectors.DefaultSelector()
    for source in (0, *ways):
        chosen.register(source, selectors.EVENT_READ)
    while True:
        pause = max(0.0, min(way.land() for way in ways.values()))
        for key, _ in chosen.select(pause):
            if key.fd:
                lost = draw.random() < loss or time.monotonic() < cut_until
                ways[key.fd].take(delay=delay, bits=bits, lost=lost)
            elif seconds := os.read(0, 64):
                cut_until = time.monotonic() + float(seconds)
            else:
                print(*(n for way in ways.values() for n in (way.carried, way.lost)), flush=True)
                return


if __name__ == "__main__":
    main(*map(float, sys.argv[1:4]), int(sys.argv[4]))
