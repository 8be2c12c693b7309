"""Collects what a body has that is ignored, so that a reply can say so, and finds which of it is misspelt.

What is kept of a request's names is kept as long as the request: a client chooses them, and may send new ones for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from edgekit.errors import nearest

__all__ = ["MAX_COMPARED", "collect_ignored", "ignore", "near_name", "shown_name"]

MAX_COMPARED = 64
"""Unknown names of a request that are compared with known ones: a comparison takes some tenths of a millisecond."""

_MAX_NAMES = 8
_MAX_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class _Collected:
    """What was found in one request: the names of what is ignored, and the known names nearest to unknown ones."""

    names: list[str] = field(default_factory=list)
    near: dict[tuple[frozenset[str], str], str | None] = field(default_factory=dict)


_collected: ContextVar[_Collected | None] = ContextVar("ignored", default=None)


@contextmanager
def collect_ignored() -> Iterator[list[str]]:
    """Collect the names of what is ignored, in this context and in threads that copy it: the first few, printable.

    The context is that of one request: in it, `near_name` compares `MAX_COMPARED` names.
    """
    collected = _Collected()
    token = _collected.set(collected)
    try:
        yield collected.names
    finally:
        _collected.reset(token)


def ignore(name: str) -> None:
    """Note that something is ignored.

    Args:
        name: A field's name as the client wrote it, or a path: `tools[0]`.
    """
    collected = _collected.get()
    if collected is None or len(collected.names) >= _MAX_NAMES:
        return
    shown = shown_name(name)
    if shown not in collected.names:
        collected.names.append(shown)


def shown_name(name: str) -> str:
    """Return a name as it is collected, fit for a header: short, without control characters and commas, not empty."""
    return "".join(char if "!" <= char <= "~" and char != "," else "?" for char in name[:_MAX_CHARACTERS]) or '""'


def near_name(name: str, known: frozenset[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name closest to an unknown one, as `nearest`, for the first few different ones of a request.

    A body may have a hundred thousand: those after the first `MAX_COMPARED`, and ones of more than 40 characters, are
    like none.
    """
    if len(name) > _MAX_CHARACTERS:
        return None
    collected = _collected.get()
    if collected is None:
        return nearest(name, known, cutoff=cutoff)
    if (known, name) not in collected.near:
        if len(collected.near) >= MAX_COMPARED:
            return None
        collected.near[known, name] = nearest(name, known, cutoff=cutoff)
    return collected.near[known, name]
