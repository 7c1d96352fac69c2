"""Jobs run in turns, wait for each other, and are unwound when something ends early."""

import contextvars
import threading
from collections.abc import Callable, Mapping

import pytest

from mlecs_lightning.cohorts.lockstep import run_in_lockstep

Meet = Callable[[int], int]


class Diary:
    """Notes the turns."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def enter(self, job: int) -> None:
        self.turns.append(f"+{job}")

    def leave(self, job: int) -> None:
        self.turns.append(f"-{job}")


def test_jobs_meet_as_often_as_each_likes() -> None:
    served, before = list[dict[int, int]](), threading.active_count()

    def counts(times: int) -> Callable[[Meet], int]:
        return lambda meet: sum(meet(10 * times + n) for n in range(times))

    def serve(asked: Mapping[int, int]) -> dict[int, int]:
        served.append(dict(asked))
        return {job: value * 2 for job, value in asked.items()}

    diary = Diary()
    results = run_in_lockstep([counts(2), counts(0), counts(1)], serve, diary)
    assert served == [{0: 20, 2: 10}, {0: 21}]
    assert results == [82, 0, 20]
    assert diary.turns == ["+0", "-0", "+1", "+2", "-2", "+0", "-0", "+2", "+0"]
    assert threading.active_count() == before


def test_an_exception_for_one_job_is_raised_where_it_waits() -> None:
    def job(meet: Meet) -> int:
        try:
            return meet(0)
        except ValueError:
            return -1

    assert run_in_lockstep([job, job], lambda _: {0: 5, 1: ValueError()}, Diary()) == [5, -1]


@pytest.mark.parametrize("where", ["a job", "serve"])
def test_all_are_unwound_when_one_ends_the_run(where: str) -> None:
    unwound, before = list[int](), threading.active_count()

    def job(number: int, meet: Meet) -> int:
        try:
            if where == "a job" and number == 1:
                raise KeyboardInterrupt
            return meet(number)
        finally:
            unwound.append(number)

    def serve(asked: Mapping[int, int]) -> dict[int, int]:
        raise KeyboardInterrupt

    jobs = [lambda meet, n=n: job(n, meet) for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run_in_lockstep(jobs, serve, Diary())
    # One that has never begun has nothing to unwind.
    assert sorted(unwound) == ([0, 1] if where == "a job" else [0, 1, 2])
    assert threading.active_count() == before


def test_a_job_sees_the_context_of_its_caller() -> None:
    said = contextvars.ContextVar("said", default="nothing")
    said.set("hello")
    assert run_in_lockstep([lambda meet: said.get()], lambda _: {}, Diary()) == ["hello"]
