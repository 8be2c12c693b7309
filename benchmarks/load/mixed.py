"""The load: many callers at once, bursts, and moments of rest at which memory is looked at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from load.bodies import Bodies
from load.daemon import Daemon
from load.http_callers import HttpCallers
from load.ledger import AT_REST, KV, PREEMPTED, Ledger, gauges, outcomes
from load.memory import Sample, sample
from load.mqtt_callers import MqttCallers

__all__ = ["Plan", "Record", "run_load"]

_SETTLE_S = 60.0

Call = Callable[[], Awaitable[None]]
Burst = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Plan:
    """How hard and how long.

    Attributes:
        rest_every_s: Nobody asks for a moment, so often.
        callers: Requests under way at any moment, bursts excepted.
        burst: Requests of a burst; one in every period between rests.
        sample_every_s: How often memory is looked at while they ask.
    """

    seconds: float
    rest_every_s: float
    callers: int = 12
    burst: int = 40
    sample_every_s: float = 2.0
    seed: int = 1


@dataclass
class Record:
    """What the load left behind.

    Attributes:
        preempted: Answers that gave their slot up for others.
    """

    ledger: Ledger
    samples: list[Sample] = field(default_factory=list)
    preempted: int = 0


async def run_load(daemon: Daemon, broker: int | None, plan: Plan) -> Record:
    """Put the daemon under load until the time is over, and settle the accounts."""
    record = Record(Ledger())
    model = _model(daemon)
    bodies = Bodies(plan.seed, int(model["context_length"]))
    http = HttpCallers(daemon.url, model["id"], bodies, record.ledger)
    mqtt = None if broker is None else MqttCallers(broker, daemon.device, bodies, record.ledger)
    calls = dict(http.kinds)
    if mqtt is not None:
        await mqtt.online()
        calls.update({f"mqtt {name}": call for name, call in mqtt.kinds.items()})
    before = outcomes(_metrics(daemon))
    # The canaries learn their song before anybody else sings.
    await http.canary()
    if mqtt is not None:
        await mqtt.canary()
    try:
        await _rounds(daemon, plan, record, calls=calls, burst=http.burst, bodies=bodies)
        # As good as new: it answers, and at once.
        await asyncio.wait_for(http.canary(), _SETTLE_S)
        await _rest(daemon, record.ledger)
        metrics = _metrics(daemon)
        record.ledger.violations += record.ledger.compare(outcomes(metrics), before)
        record.preempted = int(gauges(metrics, (PREEMPTED,))[PREEMPTED])
    finally:
        await http.close()
        if mqtt is not None:
            await mqtt.close()
    return record


async def _rounds(
    daemon: Daemon, plan: Plan, record: Record, *, calls: Mapping[str, tuple[int, Call]], burst: Burst, bodies: Bodies
) -> None:
    process = psutil.Process(daemon.pid)
    begun = time.monotonic()
    end = begun + plan.seconds
    while (left := end - time.monotonic()) > 0 and daemon.alive:
        rest_at = time.monotonic() + min(left, plan.rest_every_s)
        work = [_caller(calls, bodies, rest_at) for _ in range(plan.callers)]
        watcher = asyncio.ensure_future(_watch(daemon, process, record, begun, plan.sample_every_s))
        burst_in_s = bodies.random.uniform(0, 0.7) * min(left, plan.rest_every_s)
        try:
            await asyncio.gather(*work, _later(burst_in_s, burst, plan.burst))
        finally:
            watcher.cancel()
        await _rest(daemon, record.ledger)
        if daemon.alive:
            record.samples.append(sample(process, time.monotonic() - begun, resting=True))
    if not daemon.alive:
        record.ledger.violated("the daemon ended under the load")


async def _caller(calls: Mapping[str, tuple[int, Call]], bodies: Bodies, until: float) -> None:
    names = list(calls)
    weights = [calls[name][0] for name in names]
    while time.monotonic() < until:
        (name,) = bodies.random.choices(names, weights)
        await calls[name][1]()
        # Some come at once, some think for a while.
        await asyncio.sleep(bodies.random.choice((0, 0, 0.01, 0.1)))


async def _later(wait_s: float, burst: Burst, count: int) -> None:
    await asyncio.sleep(wait_s)
    await burst(count)


async def _watch(daemon: Daemon, process: psutil.Process, record: Record, begun: float, every_s: float) -> None:
    async with httpx.AsyncClient(base_url=daemon.url, trust_env=False, timeout=30) as client:
        while daemon.alive:
            await asyncio.sleep(every_s)
            record.samples.append(sample(process, time.monotonic() - begun, resting=False))
            if (await client.get("/healthz")).status_code != 200:
                record.ledger.violated("/healthz says that generation does not move")
            held, most = gauges((await client.get("/metrics")).text, KV).values()
            if held > most:
                record.ledger.violated(f"the KV cache takes {held:.0f} bytes, {most:.0f} are allowed")


async def _rest(daemon: Daemon, ledger: Ledger) -> None:
    """Wait until the daemon has nothing to do; it must get there soon after the last caller has gone."""
    until = time.monotonic() + _SETTLE_S
    while daemon.alive:
        found = gauges(_metrics(daemon), AT_REST)
        if not any(found.values()):
            break
        if time.monotonic() > until:
            ledger.violated(f"nobody has asked for {_SETTLE_S:g} s, and still: {found}")
            return
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)


def _metrics(daemon: Daemon) -> str:
    return httpx.get(f"{daemon.url}/metrics", timeout=30, trust_env=False).text


def _model(daemon: Daemon) -> dict[str, Any]:
    reply = httpx.get(f"{daemon.url}/v1/models", timeout=30, trust_env=False).json()
    model: dict[str, Any] = reply["data"][0]
    return model
