"""SIGTERM and SIGINT: stop after the current batch and save a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(BaseException):
    """The run was stopped by a signal, after saving its state where there was one to save.

    Not an `Exception`, since an interrupted client has not failed.

    Attributes:
        signum: Number of the signal. The process should exit with 128 + signum.
        saved: Whether there is a checkpoint of what was done.
    """

    def __init__(self, signum: int) -> None:
        """Set the signal."""
        self.signum, self.saved = signum, False
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopSignals:
    """A context in which SIGTERM and SIGINT set a flag; a second SIGINT ends the process at once.

    Python allows signal handlers in the main thread only; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        """Start without a request."""
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
        """Restore the previous handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested == signal.SIGINT == signum:
            os._exit(128 + signum)  # Ctrl-C twice: do not wait
        self.requested = signum

    def check(self) -> None:
        """Stop here if a signal has been received.

        Raises:
            Interrupted: After a signal.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)
