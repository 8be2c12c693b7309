"""The mixed load: many concurrent clients, bursts, and idle phases in which memory is sampled."""

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
from load.http_clients import HttpClients
from load.ledger import IDLE, KV, PREEMPTED, Ledger, gauges, outcomes
from load.memory import Sample, sample
from load.mqtt_clients import MqttClients

__all__ = ["Plan", "Record", "run_load"]

_SETTLE_S = 60.0

Call = Callable[[], Awaitable[None]]
Burst = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Plan:
    """Intensity and duration of the load.

    Attributes:
        idle_every_s: Interval between idle phases.
        clients: Concurrent requests outside bursts.
        burst: Requests in a burst; there is one burst between two idle phases.
        sample_every_s: Interval between memory samples under load.
    """

    seconds: float
    idle_every_s: float
    clients: int = 12
    burst: int = 40
    sample_every_s: float = 2.0
    seed: int = 1


@dataclass
class Record:
    """Results of the load.

    Attributes:
        preempted: Number of preemptions.
    """

    ledger: Ledger
    samples: list[Sample] = field(default_factory=list)
    preempted: int = 0


async def run_load(daemon: Daemon, broker: int | None, plan: Plan) -> Record:
    """Run the load for the planned time, and compare the counts."""
    record = Record(Ledger())
    model = _model(daemon)
    bodies = Bodies(plan.seed, int(model["context_length"]))
    http = HttpClients(daemon.url, model["id"], bodies, record.ledger)
    mqtt = None if broker is None else MqttClients(broker, daemon.device, bodies, record.ledger)
    calls = dict(http.kinds)
    if mqtt is not None:
        await mqtt.online()
        calls.update({f"mqtt {name}": call for name, call in mqtt.kinds.items()})
    before = outcomes(_metrics(daemon))
    # Record the canaries' answers before the load starts.
    await http.canary()
    await http.every_invalid()
    if mqtt is not None:
        await mqtt.canary()
        await mqtt.every_invalid()
    try:
        await _rounds(daemon, plan, record, calls=calls, burst=http.burst, bodies=bodies)
        # The daemon must still answer promptly.
        await asyncio.wait_for(http.canary(), _SETTLE_S)
        await _wait_until_idle(daemon, record.ledger)
        metrics = _metrics(daemon)
        record.ledger.violations += record.ledger.compare(outcomes(metrics), before)
        record.preempted = int(gauges(metrics, (PREEMPTED,))[PREEMPTED])
    finally:
        await http.close()
        if mqtt is not None:
            await mqtt.close()
    return record


async def _rounds(
    daemon: Daemon,
    plan: Plan,
    record: Record,
    *,
    calls: Mapping[str, tuple[int, Call]],
    burst: Burst,
    bodies: Bodies,
) -> None:
    process = psutil.Process(daemon.pid)
    started = time.monotonic()
    end = started + plan.seconds
    while (left := end - time.monotonic()) > 0 and daemon.alive:
        until = time.monotonic() + min(left, plan.idle_every_s)
        work = [_client(calls, bodies, until) for _ in range(plan.clients)]
        watcher = asyncio.ensure_future(_watch(daemon, process, record, started, plan.sample_every_s))
        burst_in_s = bodies.random.uniform(0, 0.7) * min(left, plan.idle_every_s)
        try:
            await asyncio.gather(*work, _delayed(burst_in_s, burst, plan.burst))
        finally:
            watcher.cancel()
        await _wait_until_idle(daemon, record.ledger)
        if daemon.alive:
            record.samples.append(sample(process, time.monotonic() - started, idle=True))
    if not daemon.alive:
        record.ledger.violated("the daemon ended under the load")


async def _client(calls: Mapping[str, tuple[int, Call]], bodies: Bodies, until: float) -> None:
    names = list(calls)
    weights = [calls[name][0] for name in names]
    while time.monotonic() < until:
        (name,) = bodies.random.choices(names, weights)
        await calls[name][1]()
        # Some send the next request at once, some pause.
        await asyncio.sleep(bodies.random.choice((0, 0, 0.01, 0.1)))


async def _delayed(wait_s: float, burst: Burst, count: int) -> None:
    await asyncio.sleep(wait_s)
    await burst(count)


async def _watch(daemon: Daemon, process: psutil.Process, record: Record, started: float, every_s: float) -> None:
    async with httpx.AsyncClient(base_url=daemon.url, trust_env=False, timeout=30) as client:
        while daemon.alive:
            await asyncio.sleep(every_s)
            record.samples.append(sample(process, time.monotonic() - started, idle=False))
            if (await client.get("/healthz")).status_code != 200:
                record.ledger.violated("/healthz reports that generation is stalled")
            used, budget = gauges((await client.get("/metrics")).text, KV).values()
            if used > budget:
                record.ledger.violated(f"the KV cache takes {used:.0f} bytes, more than its budget of {budget:.0f}")


async def _wait_until_idle(daemon: Daemon, ledger: Ledger) -> None:
    """Wait until the daemon is idle, which must be soon after the last client has finished."""
    until = time.monotonic() + _SETTLE_S
    while daemon.alive:
        found = gauges(_metrics(daemon), IDLE)
        if not any(found.values()):
            break
        if time.monotonic() > until:
            ledger.violated(f"not idle {_SETTLE_S:g} s after the last request: {found}")
            return
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)


def _metrics(daemon: Daemon) -> str:
    return httpx.get(f"{daemon.url}/metrics", timeout=30, trust_env=False).text


def _model(daemon: Daemon) -> dict[str, Any]:
    reply = httpx.get(f"{daemon.url}/v1/models", timeout=30, trust_env=False).json()
    model: dict[str, Any] = reply["data"][0]
    return model
