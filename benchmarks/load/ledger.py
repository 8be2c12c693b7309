"""Counts requests by outcome as the clients saw them, and compares with the daemon's metrics."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

__all__ = ["IDLE", "KV", "PREEMPTED", "Ledger", "gauges", "outcomes"]

IDLE = ("edgekit_queue_length", "edgekit_running_sequences", "edgekit_waiting_requests")
"""Gauges that are 0 when the daemon is idle."""

KV = ("edgekit_kv_bytes", "edgekit_kv_budget_bytes")
"""KV cache in the sequence slots, and its budget."""

PREEMPTED = "edgekit_preempted_sequences_total"

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_ENDS = frozenset({"stop", "length", "tool_calls", "cancelled"})

Counts = Mapping[tuple[str, str], int]
"""Requests by transport and outcome."""


def outcomes(metrics: str) -> dict[tuple[str, str], int]:
    """Parse the number of requests by outcome from the text of `/metrics`."""
    found = {}
    for match in _samples(metrics):
        if match["name"] == "edgekit_requests_total":
            labels = dict(_LABEL.findall(match["labels"]))
            found[labels["transport"], labels["outcome"]] = int(float(match["value"]))
    return found


def gauges(metrics: str, names: tuple[str, ...]) -> dict[str, float]:
    """Parse gauges and counters without labels.

    Raises:
        KeyError: One is missing.
    """
    found = {match["name"]: float(match["value"]) for match in _samples(metrics)}
    return {name: found[name] for name in names}


def _samples(metrics: str) -> list[re.Match[str]]:
    lines = metrics.splitlines()
    return [match for line in lines if not line.startswith("#") and (match := _SAMPLE.match(line))]


class Ledger:
    """Records every request once.

    Attributes:
        kinds: Outcomes by kind of request, for display.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.violations: list[str] = []
        self._known: Counter[tuple[str, str]] = Counter()
        self._unknown: Counter[str] = Counter()

    @property
    def sent(self) -> int:
        """Finished requests so far."""
        return sum(self._known.values()) + sum(self._unknown.values())

    def answered(self, transport: str, kind: str, outcome: str) -> None:
        """Record a request whose client saw the outcome: a finish reason or an error code."""
        self._known[transport, outcome] += 1
        self.kinds[f"{transport} {kind}"][outcome] += 1

    def left(self, transport: str, kind: str) -> None:
        """Record an accepted request whose client did not wait for the end."""
        self._unknown[transport] += 1
        self.kinds[f"{transport} {kind}"]["(hung up)"] += 1

    def violated(self, what: str) -> None:
        """Record a violation."""
        self.violations.append(what)

    def compare(self, counted: Counts, before: Counts) -> list[str]:
        """Return the discrepancies in the daemon's count.

        A request whose client hung up may have any outcome of an accepted request; all others must have the outcome
        that the client saw.

        Args:
            counted: The daemon's current count.
            before: The daemon's count before the load.
        """
        wrong = []
        for transport in sorted({transport for transport, _ in [*counted, *self._known]} | set(self._unknown)):
            excess: Counter[str] = Counter()
            for outcome in sorted({outcome for at, outcome in [*counted, *self._known] if at == transport}):
                theirs = counted.get((transport, outcome), 0) - before.get((transport, outcome), 0)
                ours = self._known[transport, outcome]
                if theirs < ours:
                    wrong.append(f"{transport}: {ours} clients saw `{outcome}`, the daemon counted {theirs}")
                excess[outcome] = max(0, theirs - ours)
            odd = {outcome: count for outcome, count in excess.items() if count and outcome not in _ENDS}
            if odd:
                wrong.append(f"{transport}: the daemon counted outcomes that no client saw: {odd}")
            more = sum(excess.values())
            if more != self._unknown[transport]:
                wrong.append(
                    f"{transport}: {self._unknown[transport]} clients hung up, the daemon counted {more} more requests"
                )
            # Hanging up cancels the answer; of so many, some must still have been running.
            if self._unknown[transport] >= 20 and not excess["cancelled"]:
                wrong.append(f"{transport}: {self._unknown[transport]} clients hung up, but no answer was cancelled")
        return wrong
