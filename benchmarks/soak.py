"""Soak test: minutes of mixed load on a real daemon over loopback; exits with 1 on any violation.

    scripts/bench soak                             30 minutes, SmolLM2-135M, over HTTP, and MQTT with mosquitto
    scripts/bench soak --minutes 2 --bundle DIR    two minutes on a bundle
    scripts/bench soak --config edgekit.yaml       with another configuration
    scripts/bench soak --quick                     12 seconds, a tiny model with random weights

Clients request answers of random length, full and streamed, with schemas, tools, priorities and deadlines. They hang
up, cancel, send invalid requests, and come in bursts that exceed the queue. Invariants:

- every request is counted once: the clients' count by outcome equals that of `/metrics`;
- nothing is left behind: the gauges are 0 whenever the daemon is idle, and a new request is answered;
- the KV cache stays within its budget;
- a greedy request gets the same answer every time, whatever the load;
- answers follow their schemas; streams end once; the log has no traceback; the daemon exits with 0 on SIGTERM;
- resident memory when idle does not grow by more than 2 % after the warm-up (`--max-growth`);
- neither do open files and threads.

Every wait has a timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from inputs.bundles import CHATML, exported, tiny_bundle
from load.daemon import Broker, Daemon
from load.memory import Trend, trend
from load.mixed import Plan, Record, run_load
from quick import parse

MIN_IDLE_SAMPLES = 4
# A thread pool grows with the largest burst and then stays; a leak continues.
MAX_MORE_FILES, MAX_MORE_THREADS = 8, 16
# Small, so that requests wait for memory, are preempted and evict one another from the prefix cache, and so that every
# cache is full after the warm-up.
CONFIG = """\
generation:
  max_queue: 16
  kv_cache_mib: 128
  prefix_memory_mib: 32
  prefix_folder: prefix
  prefix_disk_mib: 64
"""
# Of the tiny model: less than three contexts' worth of KV cache.
QUICK_CONFIG = """\
generation:
  max_queue: 16
  kv_cache_mib: 1
  prefix_memory_mib: 1
  prefix_folder: prefix
  prefix_disk_mib: 4
"""
# As short as its context: the model is random, so descriptions are useless to it.
QUICK_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    '<tool_call>{"arguments"}</tool_call><|im_end|>\n{% endif %}'
)
# Too short to judge memory by: pools and caches still fill.
QUICK = {"minutes": 0.2, "warm_up": 0.05, "max_growth": 100.0, "threads": 1}


def main() -> None:
    """Run, print, and exit with the verdict."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = _run(arguments, folder)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    sys.exit(1 if report["violations"] else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--warm-up", type=float, default=0.3, help="share of the time after which memory must be stable [0.3]"
    )
    parser.add_argument(
        "--max-growth", type=float, default=2.0, help="limit of the growth of resident memory when idle, in percent [2]"
    )
    parser.add_argument("--bundle", type=Path, help="an exported bundle [SmolLM2-135M, exported into --work]")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the exported bundle")
    parser.add_argument("--config", type=Path, help="the daemon's configuration file")
    parser.add_argument("--context-length", type=int, help="maximum tokens of a chat [the bundle's]")
    parser.add_argument("--threads", type=int, help="threads of the daemon [its default]")
    parser.add_argument("--clients", type=int, default=12, help="concurrent requests")
    parser.add_argument("--burst", type=int, default=40, help="requests in a burst; more than the queue holds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-mqtt", action="store_true", help="skip MQTT even if mosquitto is installed")
    parser.add_argument("--json", action="store_true")
    return parse(parser, QUICK)


def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = arguments.config
    if config is None:
        config = folder / "edgekit.yaml"
        config.write_text(QUICK_CONFIG if arguments.quick else CONFIG, encoding="utf-8")
    program = None if arguments.no_mqtt else Broker.program()
    if program is None:
        print("without MQTT: mosquitto is not installed, or --no-mqtt is set", file=sys.stderr)
    options = []
    for name in ("context_length", "threads"):
        if getattr(arguments, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    bundle = arguments.bundle or (_tiny(folder) if arguments.quick else exported(arguments.work))
    broker = Broker(program, folder) if program else None
    try:
        daemon = Daemon(bundle, config, folder, broker=broker.port if broker else None, options=options)
        seconds = 60 * arguments.minutes
        idle_every_s = min(20.0, max(1.5, seconds / 20))
        plan = Plan(seconds, idle_every_s, clients=arguments.clients, burst=arguments.burst, seed=arguments.seed)
        started = time.monotonic()
        try:
            # Not the sum of all worst cases: a daemon that hangs is noticed earlier.
            limit_s = plan.seconds + 300
            record = asyncio.run(asyncio.wait_for(run_load(daemon, broker.port if broker else None, plan), limit_s))
        finally:
            code = daemon.stop()
        seconds = time.monotonic() - started
    finally:
        if broker:
            broker.stop()
    return _report(record, code, daemon.log, seconds, arguments)


def _report(record: Record, code: int, log: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    ledger = record.ledger
    violations = [*ledger.violations]
    if code:
        violations.append(f"the daemon ended with {code}")
    if "Traceback" in log:
        violations.append("the daemon's log has a traceback:\n" + log[log.index("Traceback") :][:2000])
    if ledger.sent == 0:
        violations.append("no request was sent")
    warm_up_s = 60 * arguments.minutes * arguments.warm_up
    after = [sample for sample in record.samples if sample.at_s >= warm_up_s]
    idle = [sample for sample in after if sample.idle]
    trends: dict[str, Trend] = {}
    if len(idle) < MIN_IDLE_SAMPLES:
        violations.append(f"only {len(idle)} idle samples after the warm-up: too few to judge memory")
    else:
        trends["resident, idle"] = trend([(sample.at_s, sample.rss) for sample in idle])
        trends["proportional (PSS), idle"] = trend([(sample.at_s, sample.pss) for sample in idle])
        busy = [(sample.at_s, float(sample.rss)) for sample in after if not sample.idle]
        if len(busy) >= MIN_IDLE_SAMPLES:
            trends["resident, under load"] = trend(busy)
        growth = 100 * trends["resident, idle"].growth
        if growth > arguments.max_growth:
            violations.append(f"resident memory grew by {growth:.2f} %; the limit is {arguments.max_growth:g} %")
        for what, limit in (("files", MAX_MORE_FILES), ("threads", MAX_MORE_THREADS)):
            counts = [getattr(sample, what) for sample in idle]
            more = max(counts[len(counts) // 2 :]) - max(counts[: len(counts) // 2])
            if more > limit:
                violations.append(f"the maximum of {what} grew by {more} from the first half to the second")
    return {
        "seconds": round(seconds, 1),
        "requests": ledger.sent,
        "preempted": record.preempted,
        "outcomes": {kind: dict(counts.most_common()) for kind, counts in sorted(ledger.kinds.items())},
        "memory": {name: str(value) for name, value in trends.items()},
        "growth": trends["resident, idle"].growth if trends else None,
        "files": [sample.files for sample in idle],
        "threads": [sample.threads for sample in idle],
        # Identical violations are listed once.
        "violations": [
            text if count == 1 else f"{text} ({count} times)" for text, count in Counter(violations).items()
        ],
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['requests']} requests in {report['seconds']:.0f} s; ", end="")
    print(f"{report['preempted']} preemptions\n")
    for kind, counts in report["outcomes"].items():
        print(f"{kind:28}{', '.join(f'{outcome} {count}' for outcome, count in counts.items())}")
    print()
    for name, line in report["memory"].items():
        print(f"{name}: {line}")
    if report["files"]:
        print(f"open files, idle: {report['files'][0]} to {report['files'][-1]}")
        print(f"threads, idle: {report['threads'][0]} to {report['threads'][-1]}")
    print()
    for text in report["violations"]:
        print(f"VIOLATION: {text}")
    if not report["violations"]:
        print("no violations")


def _tiny(folder: Path) -> Path:
    """Write a bundle of a tiny model, whose chat template has tools."""
    # 1.5 KB of KV cache per token; with 0.75 KB answers were preempted so rarely that a busy machine saw none.
    return tiny_bundle(folder, "onnx", bits=4, kv_heads=4, template=QUICK_TEMPLATE + CHATML)


if __name__ == "__main__":
    main()
