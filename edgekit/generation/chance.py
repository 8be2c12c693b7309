"""How likely something is to come true, by how often it did."""

from __future__ import annotations

__all__ = ["Chance"]

# How many observations a prior is worth, and how much of what was seen is remembered at the next.
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.97


class Chance:
    """How often something comes true, the recent past counting most.

    Args:
        prior: What to think before anything was seen.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._hits = 0.0
        self._tries = 0.0

    @property
    def value(self) -> float:
        """The chance, from 0 to 1."""
        return (self._hits + _PRIOR_WEIGHT * self._prior) / (self._tries + _PRIOR_WEIGHT)

    def learn(self, tries: int, hits: int) -> None:
        """Take so many tries, and how many of them came true."""
        keep = _MEMORY**tries
        self._hits = self._hits * keep + hits
        self._tries = self._tries * keep + tries
