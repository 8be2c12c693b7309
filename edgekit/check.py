"""The result of one check of `edgekit doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check", "State"]

State = Literal["ok", "note", "warn", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: Name of the check.
        state: "ok"; "note" for information that needs no action; "warn"; "missing" if edgekit does not work here
            without it.
        detail: What was found.
        fix: The command that fixes it.
    """

    name: str
    state: State
    detail: str
    fix: str | None = None
