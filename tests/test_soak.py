"""Two minutes of mixed load on a real daemon, and whether the verdict on it would see what is wrong.

`benchmarks/soak.py` is the same for half an hour, on a real model.
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

from tests.generation.bundles import tiny_bundle
from tests.models import CHATML

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MIB = 1 << 20
# Less than three contexts' worth of everything: requests wait for memory, and push one another out.
CONFIG = """\
generation:
  kv_cache_mib: 1
  prefix_memory_mib: 1
  prefix_folder: prefix
  prefix_disk_mib: 4
"""
# Short, as the context is: the model is random, and learns nothing from a description.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    '<tool_call>{"arguments"}</tool_call><|im_end|>\n{% endif %}'
)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a part of the benchmarks, which are scripts and not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.broker
@pytest.mark.timeout(290)
def test_two_minutes_of_everything_leave_nothing_behind(tmp_path: Path) -> None:
    # 1.5 KB of KV cache a token; with 0.75 answers gave their slot up so seldom that a busy machine saw none.
    bundle = tiny_bundle(tmp_path, "onnx", bits=4, kv_heads=4)
    (bundle / "chat_template.jinja").write_text(TOOLS + CHATML, encoding="utf-8")
    config = tmp_path / "edgekit.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--minutes", "2", "--warm-up", "0.5", "--threads", "1"]
    # Pools and caches still fill a little after so short a warm-up; a leak of a kilobyte a request would show.
    command += ["--max-growth", "4", "--bundle", str(bundle), "--config", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert done.returncode == 0
    outcomes = report["outcomes"]
    # What never happened was not tested.
    assert outcomes["http tools"]["tool_calls"] > 0
    assert outcomes["http schema"]["stop"] > 0
    assert outcomes["http burst"]["overloaded"] > 0
    assert outcomes["http deadline"]["deadline_exceeded"] > 0
    assert outcomes["http hang up in a stream"]["(hung up)"] > 0
    assert outcomes["mqtt cancel"]["cancelled"] > 0
    assert report["preempted"] > 0


def test_a_request_that_was_counted_twice_or_not_at_all_shows(part: Callable[[str], Any]) -> None:
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
    # Who hung up has one outcome, whichever; but not one that an accepted request cannot have.
    ended = {**right, ("http", "cancelled"): 0, ("http", "length"): 2}
    assert ledger.compare(ended, {}) == []
    assert ledger.compare({**ended, ("http", "length"): 1, ("http", "internal_error"): 1}, {})
    # What was counted before counts for nobody.
    assert ledger.compare(right | {("http", "stop"): 5}, {("http", "stop"): 3}) == []


def test_the_daemons_own_words_are_read(part: Callable[[str], Any]) -> None:
    ledger = part("load.ledger")
    text = (
        "# HELP edgekit_requests_total Requests\n"
        'edgekit_requests_total{door="http",outcome="stop"} 12.0\n'
        'edgekit_requests_created{door="http",outcome="stop"} 1.7e+09\n'
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
def test_memory_that_leaks_shows_and_memory_that_comes_and_goes_does_not(part: Callable[[str], Any], seed: int) -> None:
    trend = part("load.memory").trend
    chance = random.Random(seed)  # noqa: S311  noise, not a secret

    def series(leak: float) -> list[tuple[float, float]]:
        # What an allocator holds beyond what is needed: nothing most of the time, and a lot now and then.
        held = [150 * MIB * (1 + leak * place / 29 + 0.08 * chance.random() ** 3) for place in range(30)]
        return [(6.0 * place, value) for place, value in enumerate(held)]

    assert trend(series(0.0)).growth < 0.02
    assert trend(series(0.08)).growth > 0.02
    assert trend(series(-0.2)).growth < 0
