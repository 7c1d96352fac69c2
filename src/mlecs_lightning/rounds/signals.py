"""SIGTERM and SIGINT: stop after the batch at hand, save, and say by which signal."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(BaseException):
    """The run was asked to stop. What could be saved is saved.

    No `Exception`: a client that is interrupted has not failed.

    Attributes:
        signum: The signal. The process should exit with 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        """Name the signal."""
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopSignals:
    """A context in which SIGTERM and SIGINT set a flag, and a second SIGINT ends the process.

    Outside the main thread, where Python has no signal handlers, the context changes nothing.
    """

    def __init__(self) -> None:
        """Begin without a request."""
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested == signal.SIGINT == signum:
            os._exit(128 + signum)  # whoever presses twice does not want to wait
        self.requested = signum

    def check(self) -> None:
        """Stop here, if that has been asked for.

        Raises:
            Interrupted: After a signal.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)
