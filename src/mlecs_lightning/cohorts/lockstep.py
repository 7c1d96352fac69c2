"""Runs several jobs in turns, and serves what all of them wait for at once."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Abandoned", "Switch", "run_in_lockstep"]

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")


class Abandoned(BaseException):
    """Unwinds a job whose cohort has ended early.

    Not an `Exception`, since the client of that job has not failed.
    """


class Switch(Protocol):
    """Told which job runs, to exchange what the jobs would otherwise share."""

    def enter(self, job: int) -> None:
        """Prepare for a job that begins or goes on."""

    def leave(self, job: int) -> None:
        """Put away what belongs to a job that waits now."""


def run_in_lockstep(
    jobs: Sequence[Callable[[Callable[[Q], A]], T]],
    serve: Callable[[Mapping[int, Q]], Mapping[int, A | Exception]],
    switch: Switch,
) -> list[T]:
    """Run jobs until all wait or have ended, serve those that wait, and so on.

    A job is plain code that calls ``meet(request)`` wherever it needs something that is better done
    for all jobs together. Each has a thread of its own, which keeps its place in that code, but
    only one thread runs at a time, so a job needs no locks. `serve` runs in the calling thread.

    Args:
        jobs: Each is called with ``meet``, which returns the answer or raises the exception that
            ``serve`` has for this job.
        serve: Maps the requests of the waiting jobs to their answers.
        switch: Called around every turn of a job.

    Returns:
        The results of the jobs.

    Raises:
        BaseException: Whatever a job or ``serve`` raises; the other jobs are unwound before that.
    """
    back = _taken()
    seats = [_Seat(job, number, back, switch) for number, job in enumerate(jobs)]
    try:
        for seat in seats:
            seat.thread.start()
            seat.go_on()
        while waiting := {seat.number: seat.request for seat in seats if not seat.ended}:
            for number, answer in serve(waiting).items():
                seats[number].answer = answer
            for number in waiting:
                seats[number].go_on()
    finally:
        for seat in seats:
            seat.abandon()
    return [seat.result for seat in seats]


class _Seat(Generic[Q, A, T]):
    """One job in its thread.

    Attributes:
        number: Number of the job.
        request: What it asks for while it waits.
        answer: The answer, or the exception to raise in the job.
        ended: Whether it has returned or raised.
    """

    def __init__(
        self,
        job: Callable[[Callable[[Q], A]], T],
        number: int,
        back: threading.Lock,
        switch: Switch,
    ) -> None:
        self.number, self.ended = number, False
        self.request: Any = None
        self.answer: Any = None
        self.result: Any = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._job, self._back, self._switch = job, back, switch
        self._turn = _taken()
        run = contextvars.copy_context().run
        self.thread = threading.Thread(target=run, args=(self._run,), daemon=True)

    def go_on(self) -> None:
        """Let the job run until it waits again or has ended.

        Raises:
            BaseException: What the job has raised.
        """
        self._switch.enter(self.number)
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        if not self.ended:
            self._switch.leave(self.number)

    def abandon(self) -> None:
        """Unwind the job if it has not ended."""
        self._abandoned = True
        if self.thread.ident is None:  # it was never started
            return
        if not self.ended:
            self._turn.release()
            self._back.acquire()  # which the thread releases, as at the end of any turn
        self.thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._abandoned:
                self.result = self._job(self._meet)
        except Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.ended = True
            self._back.release()

    def _meet(self, request: Q) -> A:
        self.request, self.answer = request, None
        self._back.release()
        self._turn.acquire()
        answer, self.request = self.answer, None
        if self._abandoned:
            raise Abandoned
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


def _taken() -> threading.Lock:
    """Return a lock that is taken: whoever releases it lets another thread go on once."""
    lock = threading.Lock()
    lock.acquire()
    return lock
