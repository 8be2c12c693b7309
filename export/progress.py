"""The progress callback of an export."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Report", "silent"]

Report = Callable[[str, int, int | None], None]
"""`(stage, done, total)`; total is None if unknown."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing."""
