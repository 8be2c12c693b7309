"""Functions on several threads: results in order, errors, and threads that die before they do anything."""

import _thread
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest

from edgekit.runners.cpu.parallel import run_parallel


def square(value: int) -> Callable[[], int]:
    return lambda: value * value


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_functions(count: int, threads: int) -> None:
    assert run_parallel([square(value) for value in range(count)], threads) == [value**2 for value in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_functions_run_at_a_time_as_there_are_threads(threads: int) -> None:
    together = threading.Barrier(threads, timeout=20)
    assert len(run_parallel([together.wait] * threads, threads)) == threads


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("error", [ValueError("bad"), MemoryError(), KeyboardInterrupt()])
def test_an_error_is_raised_when_nothing_runs_any_more(error: BaseException, threads: int) -> None:
    running = [0]
    begun: list[int] = []

    def work(index: int) -> None:
        begun.append(index)
        running[0] += 1
        try:
            time.sleep(0.002)
            if index == 5:
                raise error
        finally:
            running[0] -= 1

    with pytest.raises(type(error)) as caught:
        run_parallel([partial(work, index) for index in range(1000)], threads)
    assert caught.value is error
    assert running == [0]
    assert len(begun) < 100


def test_the_error_of_another_thread_is_raised() -> None:
    caller = threading.get_ident()
    both = threading.Barrier(2, timeout=20)

    def work() -> None:
        both.wait()
        if threading.get_ident() != caller:
            raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        run_parallel([work, work], 2)


def test_threads_that_begin_when_the_work_is_done_end_too() -> None:
    before = psutil.Process().num_threads()
    for _ in range(50):
        run_parallel([square(1)], 4)
    deadline = time.monotonic() + 20
    while psutil.Process().num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_threads() <= before


@pytest.mark.parametrize("failing", [RuntimeError("can't start new thread"), MemoryError(), None])
def test_threads_that_cannot_start_or_die_at_once_are_done_without(
    failing: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: the thread starts and ends in silence, as in CPython's issue 140746."""

    def start(*_: Any) -> int:
        if failing is not None:
            raise failing
        return 1

    monkeypatch.setattr(_thread, "start_new_thread", start)
    assert run_parallel([square(value) for value in range(20)], 4) == [value**2 for value in range(20)]
