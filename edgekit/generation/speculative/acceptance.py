"""Exponentially weighted acceptance rate of draft tokens."""

from __future__ import annotations

__all__ = ["AcceptanceRate"]

# How many observations the prior counts as, and the weight of past observations after each new one.
_PRIOR_WEIGHT = 2.0
_DECAY = 0.97


class AcceptanceRate:
    """Acceptance rate with a prior; recent observations count most.

    Args:
        prior: The rate before anything was observed.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._accepted = 0.0
        self._drafted = 0.0

    @property
    def value(self) -> float:
        """The rate, from 0 to 1."""
        return (self._accepted + _PRIOR_WEIGHT * self._prior) / (self._drafted + _PRIOR_WEIGHT)

    def learn(self, drafted: int, accepted: int) -> None:
        """Record how many of some draft tokens were accepted."""
        decay = _DECAY**drafted
        self._accepted = self._accepted * decay + accepted
        self._drafted = self._drafted * decay + drafted
