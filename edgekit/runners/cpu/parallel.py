"""Runs functions on several threads where memory may run out.

`ThreadPoolExecutor` can hang there: `Thread.start` waits for the new thread to report that it runs, and a thread that
has no memory to do so never does (https://github.com/python/cpython/issues/140746). Here the calling thread works too,
and waits only for threads that are in the middle of a function.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["run_parallel"]

_Result = TypeVar("_Result")


def run_parallel(functions: Sequence[Callable[[], _Result]], threads: int) -> list[_Result]:
    """Call each function once, in order of the sequence, and return their results in that order.

    No function is running when this returns or raises. After an error, those that have not begun are left out.

    Args:
        functions: They may run at the same time.
        threads: Maximum number of threads, the calling one included; fewer if no more can be started.

    Raises:
        MemoryError: A thread ended without a result.
        BaseException: The first error of the functions.
    """
    return _Batch(functions).run(threads)


class _Batch(Generic[_Result]):
    def __init__(self, functions: Sequence[Callable[[], _Result]]) -> None:
        self._functions = functions
        self._next = iter(range(len(functions)))
        self._results: dict[int, _Result] = {}
        self._errors: list[BaseException] = []
        self._stopped = False

    def run(self, threads: int) -> list[_Result]:
        busy = [_thread.allocate_lock() for _ in range(threads - 1)]
        try:
            for lock in busy:
                # Fewer threads are only slower.
                with suppress(RuntimeError, MemoryError):
                    _thread.start_new_thread(self._help, (lock,))
            self._work()
        finally:
            self._stopped = True
            # A thread holds its lock from before it takes its first function; one that comes later finds none left.
            # It must find its lock free, or it would wait for ever.
            for lock in busy:
                with lock:
                    pass
        if self._errors:
            raise self._errors[0]
        if len(self._results) < len(self._functions):
            raise MemoryError
        return [self._results[index] for index in range(len(self._functions))]

    def _help(self, busy: _thread.LockType) -> None:
        with busy:
            try:
                self._work()
            except BaseException as error:  # noqa: BLE001  raised by the calling thread
                self._stopped = True
                self._errors.append(error)

    def _work(self) -> None:
        while not self._stopped and (index := next(self._next, None)) is not None:
            self._results[index] = self._functions[index]()
