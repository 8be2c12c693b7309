"""Mixed load on a real daemon for some seconds, or two minutes, and tests of the checks that judge it.

`benchmarks/soak.py` runs half an hour of it on a real model.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.serial

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MIB = 1 << 20


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of the benchmarks, which are scripts and not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.broker
@pytest.mark.timeout(290)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="12 seconds"),
        # After so short a warm-up pools and caches still grow a little; a leak of a kilobyte per request would show.
        pytest.param(
            ["--minutes", "2", "--warm-up", "0.5", "--max-growth", "4"], id="two minutes", marks=pytest.mark.slow
        ),
    ],
)
def test_a_mixed_load_leaves_nothing_behind(options: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--quick", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert done.returncode == 0
    outcomes = report["outcomes"]
    assert sum(sum(counts.values()) for counts in outcomes.values()) > 20
    if not options:
        return
    # Every outcome must have occurred, or it was not tested.
    assert outcomes["http tools"]["tool_calls"] > 0
    assert outcomes["http schema"]["stop"] > 0
    assert outcomes["http burst"]["overloaded"] > 0
    assert outcomes["http deadline"]["deadline_exceeded"] > 0
    assert outcomes["http hang up in a stream"]["(hung up)"] > 0
    assert outcomes["mqtt cancel"]["cancelled"] > 0
    assert report["preempted"] > 0


def test_a_request_counted_twice_or_not_at_all_is_detected(part: Callable[[str], Any]) -> None:
    ledger = part("load.ledger").Ledger()
    for outcome in ("stop", "stop", "length", "overloaded"):
        ledger.answered("http", "whole", outcome)
    ledger.left("http", "hang up")
    right = {("http", "stop"): 2, ("http", "length"): 1, ("http", "overloaded"): 1, ("http", "cancelled"): 1}
    assert ledger.compare(right, {}) == []
    for at, count in right.items():
        assert ledger.compare({**right, at: count + 1}, {}), at
        assert ledger.compare({**right, at: count - 1}, {}), at
    assert ledger.compare({**right, ("mqtt", "stop"): 1}, {})
    # A caller that hung up has one outcome of any kind that an accepted request can have.
    ended = {**right, ("http", "cancelled"): 0, ("http", "length"): 2}
    assert ledger.compare(ended, {}) == []
    assert ledger.compare({**ended, ("http", "length"): 1, ("http", "internal_error"): 1}, {})
    # Earlier counts are subtracted.
    assert ledger.compare(right | {("http", "stop"): 5}, {("http", "stop"): 3}) == []


def test_the_metrics_are_parsed(part: Callable[[str], Any]) -> None:
    ledger = part("load.ledger")
    text = (
        "# HELP edgekit_requests_total Requests\n"
        'edgekit_requests_total{transport="http",outcome="stop"} 12.0\n'
        'edgekit_requests_created{transport="http",outcome="stop"} 1.7e+09\n'
        "edgekit_queue_length 3.0\nedgekit_kv_bytes 1.5e+06\n"
    )
    assert ledger.outcomes(text) == {("http", "stop"): 12}
    assert ledger.gauges(text, ("edgekit_queue_length", "edgekit_kv_bytes")) == {
        "edgekit_queue_length": 3.0,
        "edgekit_kv_bytes": 1.5e6,
    }
    with pytest.raises(KeyError):
        ledger.gauges(text, ("edgekit_running_sequences",))


@pytest.mark.parametrize("seed", range(5))
def test_a_memory_leak_is_detected_and_fluctuation_is_not(part: Callable[[str], Any], seed: int) -> None:
    trend = part("load.memory").trend
    noise = random.Random(seed)  # noqa: S311  noise, not a secret

    def series(leak: float) -> list[tuple[float, float]]:
        # Allocator overhead: usually small, occasionally large.
        resident = [150 * MIB * (1 + leak * index / 29 + 0.08 * noise.random() ** 3) for index in range(30)]
        return [(6.0 * index, value) for index, value in enumerate(resident)]

    assert trend(series(0.0)).growth < 0.02
    assert trend(series(0.08)).growth > 0.02
    assert trend(series(-0.2)).growth < 0
