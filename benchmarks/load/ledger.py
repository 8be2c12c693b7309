"""Who was answered how: the callers' own count by outcome, and whether the daemon's agrees. It knows no transport."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

__all__ = ["AT_REST", "KV", "PREEMPTED", "Ledger", "gauges", "outcomes"]

AT_REST = ("edgekit_queue_length", "edgekit_running_sequences", "edgekit_waiting_requests")
"""Gauges that are 0 while nobody asks."""

KV = ("edgekit_kv_bytes", "edgekit_kv_budget_bytes")
"""KV cache in the sequence slots, and the most it may be."""

PREEMPTED = "edgekit_preempted_sequences_total"

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_ENDS = frozenset({"stop", "length", "tool_calls", "cancelled"})

Counts = Mapping[tuple[str, str], int]
"""Requests by door and outcome."""


def outcomes(metrics: str) -> dict[tuple[str, str], int]:
    """Read how many requests ended how, out of the text of `/metrics`."""
    found = {}
    for match in _samples(metrics):
        if match["name"] == "edgekit_requests_total":
            labels = dict(_LABEL.findall(match["labels"]))
            found[labels["door"], labels["outcome"]] = int(float(match["value"]))
    return found


def gauges(metrics: str, names: tuple[str, ...]) -> dict[str, float]:
    """Read gauges and counters without labels.

    Raises:
        KeyError: One is not there.
    """
    found = {match["name"]: float(match["value"]) for match in _samples(metrics)}
    return {name: found[name] for name in names}


def _samples(metrics: str) -> list[re.Match[str]]:
    lines = metrics.splitlines()
    return [match for line in lines if not line.startswith("#") and (match := _SAMPLE.match(line))]


class Ledger:
    """Every request that was sent, once.

    Attributes:
        kinds: Outcomes by kind of request, for people.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.violations: list[str] = []
        self._known: Counter[tuple[str, str]] = Counter()
        self._unknown: Counter[str] = Counter()

    @property
    def sent(self) -> int:
        """Requests so far, those that are under way excepted."""
        return sum(self._known.values()) + sum(self._unknown.values())

    def answered(self, door: str, kind: str, outcome: str) -> None:
        """A request whose caller learned how it ended: a finish reason or an error's code."""
        self._known[door, outcome] += 1
        self.kinds[f"{door} {kind}"][outcome] += 1

    def left(self, door: str, kind: str) -> None:
        """A request that was taken, and whose caller did not wait for the end."""
        self._unknown[door] += 1
        self.kinds[f"{door} {kind}"]["(hung up)"] += 1

    def violated(self, what: str) -> None:
        """Something that must not happen."""
        self.violations.append(what)

    def compare(self, counted: Counts, before: Counts) -> list[str]:
        """Return what is wrong with the daemon's count.

        A request whose caller hung up may have ended in any way that an accepted one can; all others must have ended
        as their callers say.

        Args:
            counted: The daemon's count now.
            before: Its count when the ledger was begun.
        """
        wrong = []
        for door in sorted({door for door, _ in [*counted, *self._known]} | set(self._unknown)):
            excess: Counter[str] = Counter()
            for outcome in sorted({outcome for at, outcome in [*counted, *self._known] if at == door}):
                theirs = counted.get((door, outcome), 0) - before.get((door, outcome), 0)
                ours = self._known[door, outcome]
                if theirs < ours:
                    wrong.append(f"{door}: {ours} callers were told `{outcome}`, the daemon counted {theirs}")
                excess[outcome] = max(0, theirs - ours)
            odd = {outcome: count for outcome, count in excess.items() if count and outcome not in _ENDS}
            if odd:
                wrong.append(f"{door}: the daemon counted what no caller was told: {odd}")
            more = sum(excess.values())
            if more != self._unknown[door]:
                wrong.append(f"{door}: {self._unknown[door]} callers hung up, the daemon counted {more} requests more")
            # Hanging up stops the answer; all of many will not have been over already.
            if self._unknown[door] >= 20 and not excess["cancelled"]:
                wrong.append(f"{door}: {self._unknown[door]} callers hung up, and no answer was cancelled")
        return wrong
