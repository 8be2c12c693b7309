"""Collects what a body has that is ignored, so that a reply can say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["collect_ignored", "ignore"]

_MAX_NAMES = 8
_MAX_CHARACTERS = 40

_collected: ContextVar[list[str] | None] = ContextVar("ignored", default=None)


@contextmanager
def collect_ignored() -> Iterator[list[str]]:
    """Collect the names of what is ignored, in this context and in threads that copy it: the first few, printable."""
    names: list[str] = []
    token = _collected.set(names)
    try:
        yield names
    finally:
        _collected.reset(token)


def ignore(name: str) -> None:
    """Note that something is ignored.

    Args:
        name: A field's name as the client wrote it, or a path: `tools[0]`.
    """
    names = _collected.get()
    if names is None or len(names) >= _MAX_NAMES:
        return
    # For a header: no control characters, no commas.
    shown = "".join(char if "!" <= char <= "~" and char != "," else "?" for char in name[:_MAX_CHARACTERS])
    if shown not in names:
        names.append(shown)
