"""Ends a code completion before the first line that leaves the block it began in: llama.cpp's `n_indent`."""

from __future__ import annotations

__all__ = ["IndentFilter"]


class IndentFilter:
    """Passes text through until a line is indented by too little; a line break waits until that is known.

    Args:
        minimum: Spaces and tabs that a line must begin with, the first one excepted; 0 passes everything.
    """

    def __init__(self, minimum: int) -> None:
        self._minimum = minimum
        # The last line break and the indentation after it; empty within a line.
        self._pending = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Add text and return what is certain to be passed; sets `hit` at a line that is not."""
        if not self._minimum or self.hit:
            return "" if self.hit else text
        passed: list[str] = []
        for char in text:
            if self._pending and char in " \t":
                self._pending += char
                continue
            if self._pending and len(self._pending) - 1 < self._minimum:
                self.hit = True
                self._pending = ""
                break
            passed.append(self._pending)
            self._pending = char if char == "\n" else ""
            if char != "\n":
                passed.append(char)
        return "".join(passed)

    def finish(self) -> str:
        """Return the line break and indentation that the text ends with."""
        pending, self._pending = self._pending, ""
        return pending
