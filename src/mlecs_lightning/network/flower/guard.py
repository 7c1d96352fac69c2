"""Runs a command that must not outlive its parent, even if the parent is killed.

``python guard.py COMMAND...``: when the standard input ends, the command is stopped. Only the
standard library is used, and nothing of this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

_PATIENCE = 10.0


def main(command: list[str]) -> int:
    """Run the command; return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def stop(signum: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread may not hold at the end
            pass
        stop()
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            stop(signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop())
    code = child.wait()
    stop(signal.SIGKILL)  # what it has left behind
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
