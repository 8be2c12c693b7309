"""Injects faults into real runners."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgekit.runners.base import Runner

__all__ = ["Faults"]


class Faults:
    """Wraps methods of a runner so that they can raise.

    Args:
        runner: It works normally while there is nothing to raise.
    """

    def __init__(self, runner: Runner) -> None:
        self._coming: dict[str, list[BaseException]] = {}
        self._broken: frozenset[str] = frozenset()
        for verb in ("run", "truncate"):
            setattr(runner, verb, self._guarded(verb, getattr(runner, verb)))

    def next(self, verb: str, faults: Iterable[BaseException]) -> None:
        """Let the next calls of a method raise these, one each."""
        self._coming[verb] = list(faults)

    def breaks(self, *verbs: str) -> None:
        """Let all calls of these methods raise, and of no others."""
        self._broken, self._coming = frozenset(verbs), {}

    def _guarded(self, verb: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if verb in self._broken:
                raise OSError("this runner is broken")
            if self._coming.get(verb):
                raise self._coming[verb].pop(0)
            return does(*arguments, **options)

        return call
