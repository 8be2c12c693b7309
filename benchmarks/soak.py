"""Minutes of mixed load on a real daemon over loopback, and a verdict; exits with 1 if anything was not as it must be.

    python benchmarks/soak.py                             30 minutes, SmolLM2-135M, over HTTP, and MQTT with mosquitto
    python benchmarks/soak.py --minutes 2 --bundle DIR    two minutes on a bundle
    python benchmarks/soak.py --config edgekit.yaml       with a configuration of one's own

Callers ask for answers of random length, whole and streamed, with schemas, tools, priorities and deadlines, hang up,
cancel, send nonsense, and come in bursts that are more than may wait. What must hold:

- every request is counted once: the callers' count by outcome equals that of `/metrics`;
- nothing is left behind: the gauges are back at 0 whenever nobody asks, and a fresh request is answered;
- the KV cache stays within its budget;
- a greedy question is answered alike every time, whoever else asks;
- answers follow their schemas; streams end once; the log has no traceback; the daemon ends with 0 when told to;
- resident memory at rest does not grow by more than 2 % after the warm-up (`--max-growth`);
- nor do open files and threads.

It stops by itself: no wait in it is without a limit.
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

from load.daemon import Broker, Daemon
from load.memory import Trend, trend
from load.mixed import Plan, Record, run_load

from edgekit.errors import EdgekitError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.target import load_target

MODEL = "smollm2-135m-instruct"
MIN_RESTS = 4
# A pool of threads grows to the largest burst and stays; a leak goes on.
SPARE_FILES, SPARE_THREADS = 8, 16
# Small, so that requests wait for memory, give their slots up for others, and push one another out of the prefix cache,
# and so that all that may be filled is full after the warm-up.
CONFIG = """\
generation:
  kv_cache_mib: 128
  prefix_memory_mib: 32
  prefix_folder: prefix
  prefix_disk_mib: 64
"""


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
        "--warm-up", type=float, default=0.3, help="part of the time that memory may take to settle [0.3]"
    )
    parser.add_argument("--max-growth", type=float, default=2.0, help="of resident memory at rest, in percent [2]")
    parser.add_argument("--bundle", type=Path, help="an exported bundle [SmolLM2-135M, exported into --work]")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the exported bundle is kept")
    parser.add_argument("--config", type=Path, help="the daemon's configuration file")
    parser.add_argument("--context-length", type=int, help="tokens a chat may hold [the bundle's]")
    parser.add_argument("--threads", type=int, help="threads of the daemon [its own choice]")
    parser.add_argument("--callers", type=int, default=12, help="requests under way at a time")
    parser.add_argument("--burst", type=int, default=40, help="requests of a burst; more than the queue's length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-mqtt", action="store_true", help="leave out MQTT even if mosquitto is installed")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = arguments.config
    if config is None:
        config = folder / "edgekit.yaml"
        config.write_text(CONFIG, encoding="utf-8")
    program = None if arguments.no_mqtt else Broker.program()
    if program is None:
        print("without MQTT: mosquitto is not installed or not wanted", file=sys.stderr)
    options = []
    for name in ("context_length", "threads"):
        if getattr(arguments, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    bundle = arguments.bundle or _exported(arguments.work)
    broker = Broker(program, folder) if program else None
    try:
        daemon = Daemon(bundle, config, folder, broker=broker.port if broker else None, options=options)
        seconds = 60 * arguments.minutes
        rest_every_s = min(20.0, max(3.0, seconds / 20))
        plan = Plan(seconds, rest_every_s, callers=arguments.callers, burst=arguments.burst, seed=arguments.seed)
        started = time.monotonic()
        try:
            # Half a minute for every rest's worst case would be too much; a daemon that hangs is found before.
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
        violations.append("nothing was asked")
    warm_up_s = 60 * arguments.minutes * arguments.warm_up
    after = [sample for sample in record.samples if sample.at_s >= warm_up_s]
    resting = [sample for sample in after if sample.resting]
    trends: dict[str, Trend] = {}
    if len(resting) < MIN_RESTS:
        violations.append(
            f"only {len(resting)} moments of rest after the warm-up: too short to tell anything of memory"
        )
    else:
        trends["resident, at rest"] = trend([(sample.at_s, sample.rss) for sample in resting])
        trends["proportional (PSS), at rest"] = trend([(sample.at_s, sample.pss) for sample in resting])
        busy = [(sample.at_s, float(sample.rss)) for sample in after if not sample.resting]
        if len(busy) >= MIN_RESTS:
            trends["resident, under load"] = trend(busy)
        growth = 100 * trends["resident, at rest"].growth
        if growth > arguments.max_growth:
            violations.append(f"resident memory grew by {growth:.2f} %, {arguments.max_growth:g} % are allowed")
        for what, spare in (("files", SPARE_FILES), ("threads", SPARE_THREADS)):
            counts = [getattr(sample, what) for sample in resting]
            more = max(counts[len(counts) // 2 :]) - max(counts[: len(counts) // 2])
            if more > spare:
                violations.append(f"up to {more} {what} more are open in the second half than in the first")
    return {
        "seconds": round(seconds, 1),
        "requests": ledger.sent,
        "preempted": record.preempted,
        "outcomes": {kind: dict(counts.most_common()) for kind, counts in sorted(ledger.kinds.items())},
        "memory": {name: str(value) for name, value in trends.items()},
        "growth": trends["resident, at rest"].growth if trends else None,
        "files": [sample.files for sample in resting],
        "threads": [sample.threads for sample in resting],
        # Many of one sort say no more than one.
        "violations": [
            text if count == 1 else f"{text} ({count} times)" for text, count in Counter(violations).items()
        ],
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['requests']} requests in {report['seconds']:.0f} s; ", end="")
    print(f"{report['preempted']} times an answer gave its slot up for others\n")
    for kind, counts in report["outcomes"].items():
        print(f"{kind:28}{', '.join(f'{outcome} {count}' for outcome, count in counts.items())}")
    print()
    for name, line in report["memory"].items():
        print(f"{name}: {line}")
    if report["files"]:
        print(f"open files at rest: {report['files'][0]} to {report['files'][-1]}")
        print(f"threads at rest: {report['threads'][0]} to {report['threads'][-1]}")
    print()
    for text in report["violations"]:
        print(f"VIOLATION: {text}")
    if not report["violations"]:
        print("all as it must be")


def _exported(work: Path) -> Path:
    bundle = work / f"{MODEL}-cpu-auto"
    if not bundle.exists():
        print(f"exporting {MODEL} …", file=sys.stderr)
        try:
            export_bundle(MODEL, load_target("cpu"), bundle, ExportOptions(recipe="auto"), lambda *_: None)
        except EdgekitError as error:
            sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
    return bundle


if __name__ == "__main__":
    main()
