"""Stop texts across the borders of tokens: what may become one is kept back, and what is one ends the answer."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter", "overlap"]


class StopFilter:
    """Passes text through until one of the stop texts appears in it.

    Args:
        stops: Non-empty texts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Take text and return what cannot be part of a stop text; sets `hit` at the first stop text."""
        if not self._stops or self.hit:
            return "" if self.hit else text
        text = self._held + text
        found = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was kept back and did not become a stop text."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` and is not all of it."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
