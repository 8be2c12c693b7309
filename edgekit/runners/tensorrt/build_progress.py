"""How far the build of a segment is: from the builder's phases, and between them from the processor time it took.

TensorRT reports phases, which nest, and the steps of each. Recorded with TensorRT-RTX 1.7.1 (a graph of 4 layers, SM86,
34 s; SmolLM2 and other widths are alike):

    Building engine                        6 steps
      Cloning network graph                one for each node
      Preparing graph for optimization     4
      Building engine from subgraph        1
        Optimizing graph                   30
        Computing profile costs            5 for each profile: 91 to 98 % of the time
          Determining refit engines        1, in the fourth of each 5: 95 to 99 % of that

So the time passes in one silent step for each profile, half a minute for a 7B's segment; the log is silent, too. What
is known meanwhile is the processor time of the builder. It is compared with what a build of this size takes, and once a
profile is built, with what that took: a builder that hangs computes nothing, and its share stands still.
"""

from __future__ import annotations

import math

__all__ = ["Pace", "PhaseShares", "expected_seconds"]

_COSTS = "Computing profile costs"
_SUBGRAPHS = "Building engine from subgraph"
# Shares of a build before `_COSTS` begin, and when they end.
_BEFORE, _BUILT = 0.02, 0.98
# What the profiles take, in their order: one token, a chunk, one token of several sequences.
_PROFILES = (1.0, 1.2, 1.2)
# Share of a profile's build when so many of its five steps are done.
_OF_PROFILE = (0.0, 0.005, 0.01, 0.015, 0.96)
# A share above this tells how much processor time the whole takes.
_KNOWN = 0.25
# Processor time of a build for each profile: per layer, and per byte of its weights (docs/benchmarks.md).
_LAYER_S, _BYTE_S, _MIN_S = 0.5, 22 / (1 << 30), 1.0
# The estimate is followed up to here, and then approaches the end of the step, which it never reaches.
_STRAIGHT = 0.8


def expected_seconds(*, layers: int, graph_bytes: int, profiles: int) -> float:
    """Return about how much processor time a build takes; it may be half or twice as much.

    Args:
        layers: Decoder layers.
        graph_bytes: Size of the weights.
        profiles: Optimization profiles.
    """
    return profiles * (_MIN_S + _LAYER_S * layers + _BYTE_S * graph_bytes)


class PhaseShares:
    """Turns the builder's phases into the finished share of its build.

    Args:
        profiles: Number of optimization profiles.

    Attributes:
        share: The finished share when the last step ended, from 0 to 1; it never falls.
        until: The share when the next step will have ended.
    """

    def __init__(self, profiles: int) -> None:
        self.share = 0.0
        self.until = _BEFORE
        self._profiles = profiles
        self._steps: dict[str, int] = {}
        self._top: str | None = None
        self._subgraphs = self._subgraph = 0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Handle `phase_start`."""
        self._steps[phase] = max(1, steps)
        if parent is None:
            self._top = phase
        elif phase == _SUBGRAPHS:
            self._subgraphs, self._subgraph = max(1, steps), 0
        elif phase == _COSTS:
            self._reach(0)

    def step(self, phase: str, index: int) -> None:
        """Handle `step_complete`."""
        if phase == _COSTS:
            self._reach(index + 1)
        elif phase == _SUBGRAPHS:
            self._subgraph = index + 1
        elif phase == self._top and _COSTS not in self._steps:
            self._set(_BEFORE * (index + 1) / self._steps.get(phase, index + 1), _BEFORE)

    def _reach(self, done: int) -> None:
        """So many steps of a subgraph's costs are done."""
        steps, count = self._steps.get(_COSTS, max(1, done)), max(1, self._subgraphs)
        start, width = self._subgraph / count, 1 / count
        share, until = (start + width * self._of_costs(min(one, steps), steps) for one in (done, done + 1))
        over = done >= steps and self._subgraph + 1 >= count
        self._set(_BEFORE + (_BUILT - _BEFORE) * share, 1.0 if over else _BEFORE + (_BUILT - _BEFORE) * until)

    def _of_costs(self, done: int, steps: int) -> float:
        weights = _PROFILES[: self._profiles]
        if steps != len(_OF_PROFILE) * len(weights):  # another library's way
            return done / steps
        profile, step = divmod(done, len(_OF_PROFILE))
        begun = weights[profile] * _OF_PROFILE[step] if profile < len(weights) else 0.0
        return (sum(weights[:profile]) + begun) / sum(weights)

    def _set(self, share: float, until: float) -> None:
        self.share = max(self.share, min(1.0, share))
        self.until = max(self.share, min(1.0, until))


class Pace:
    """Fills the time between two steps of a build by the processor time that it takes.

    Args:
        expected_s: About the processor time of the whole build.

    Attributes:
        share: The finished share, from 0 to 1; it never falls.
    """

    def __init__(self, expected_s: float) -> None:
        self.share = 0.0
        self._expected_s = expected_s
        self._start, self._until, self._since_s = 0.0, 0.0, 0.0
        self._first_s: float | None = None

    def report(self, share: float, until: float, cpu_s: float) -> float:
        """Handle a report of the builder; returns the share.

        Args:
            share: `PhaseShares.share`.
            until: `PhaseShares.until`.
            cpu_s: Processor time of its process until now.
        """
        if self._first_s is None:
            self._first_s = cpu_s
        if (share, until) != (self._start, self._until):
            self._start, self._until, self._since_s = share, until, cpu_s
            if share >= _KNOWN:
                self._expected_s = max(_MIN_S, (cpu_s - self._first_s) / share)
            self.share = max(self.share, share)
        return self.tick(cpu_s)

    def tick(self, cpu_s: float) -> float:
        """Return the share now.

        Args:
            cpu_s: Processor time of the builder's process until now.
        """
        width = self._until - self._start
        if width > 0:
            done = (cpu_s - self._since_s) / (self._expected_s * width)
            self.share = max(self.share, self._start + width * _slowing(max(0.0, done)))
        return self.share


def _slowing(done: float) -> float:
    """From 0 to 1: as far as the estimate says, and slower and slower where that was too little."""
    if done <= _STRAIGHT:
        return done
    return 1 - (1 - _STRAIGHT) * math.exp(-(done - _STRAIGHT) / (1 - _STRAIGHT))
