"""How export says how far it is; whoever shows it chooses how."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Report", "silent"]

Report = Callable[[str, int, int | None], None]
"""Called with a stage, how much of it is done, and how much there is (None if unknown)."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing."""
