"""One function run beside the rest. It knows nothing of what it runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

__all__ = ["Background"]

_Result = TypeVar("_Result")


class Background(Generic[_Result]):
    """Runs a function in a thread that nobody waits for unless they want its result.

    A pool would be waited for when the program ends: Ctrl-C would then last until the last file is hashed.
    """

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._future: Future[_Result] = Future()
        Thread(target=self._run, args=(function,), daemon=True).start()

    def result(self) -> _Result:
        """Wait for the end, and return what the function returned or raise what it raised."""
        return self._future.result()

    def _run(self, function: Callable[[], _Result]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:  # noqa: BLE001  raised again where the result is wanted
            self._future.set_exception(error)
