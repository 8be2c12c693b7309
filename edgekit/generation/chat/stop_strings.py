"""Finds stop strings in streamed text, also across token boundaries: text that may become one is held back."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter", "overlap"]


class StopFilter:
    """Passes text through until a stop string appears.

    Args:
        stops: Non-empty stop strings.

    Attributes:
        hit: A stop string was found.
        found: The stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self.hit = False
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text and return what cannot be part of a stop string; sets `hit` at the first stop string."""
        if not self._stops or self.hit:
            return "" if self.hit else text
        text = self._pending + text
        found = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            start, self.found = min(found)
            self.hit = True
            self._pending = ""
            return text[:start]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the text held back that did not become a stop string."""
        pending, self._pending = self._pending, ""
        return pending


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
