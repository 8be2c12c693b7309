"""The state topic: what it says, and how often."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.state_topic import REFRESH_S, StateTopic
from edgekit.daemon.mqtt.topics import Topics
from edgekit.daemon.readings import AnswerTotals
from edgekit.generation.usage import Timings, Usage
from tests.broker import Broker, Caller
from tests.daemon.machine_at_work import WorkerDouble, nano_readings, plain_readings
from tests.daemon.mqtt.conftest import MODEL, MakeService
from tests.daemon.mqtt.test_documentation import documented, shape

STATE = "edgekit/box/state"


def content(message: Outgoing | None) -> dict[str, Any] | None:
    return None if message is None else json.loads(message.payload)


def test_it_is_published_when_the_load_changes_at_most_once_in_the_interval(tmp_path: Path) -> None:
    now, worker = [100.0], WorkerDouble(0, 0)
    state = StateTopic(Topics("edgekit", "box"), plain_readings(tmp_path, worker), 5, lambda: now[0])
    first = state.birth("s-1", MODEL)
    assert (first.topic, first.retain, first.durable) == (STATE, True, False)
    published = []
    # In a tenth of a second each, the load changes all the time for twenty seconds, and then no more.
    for step in range(1, 2000):
        now[0] = 100.0 + step / 10
        worker.running = step % 7 if step < 200 else 0
        if (message := state.poll("s-1", MODEL)) is not None:
            published.append((now[0] - 100, (content(message) or {})["running"]))
    times = [at for at, _ in published]
    assert min(after - before for before, after in zip([0.0, *times], times, strict=False)) >= 4.99
    assert len(published) <= 200 / 5
    # The last change is told at the next look, and after that the minute.
    settled = [(at, running) for at, running in published if at >= 20]
    assert [running for _, running in settled] == [0] * len(settled)
    assert settled[0][0] <= 25.1
    assert [after - before for (before, _), (after, _) in pairwise(settled)] == pytest.approx(
        [REFRESH_S] * (len(settled) - 1), abs=5
    )


def test_a_connection_gets_the_state_at_once_whatever_was_published_before(tmp_path: Path) -> None:
    state = StateTopic(Topics("edgekit", "box"), plain_readings(tmp_path, WorkerDouble()), 5, lambda: 100.0)
    assert (content(state.birth("s-1", MODEL)) or {})["session"] == "s-1"
    assert state.poll("s-1", MODEL) is None
    assert (content(state.birth("s-2", MODEL)) or {})["session"] == "s-2"


@pytest.mark.broker
def test_the_state_looks_as_on_the_page_and_is_kept_for_later_readers(
    broker: Broker, make_service: MakeService, tmp_path: Path
) -> None:
    worker, totals = WorkerDouble(running=2, waiting=0), AnswerTotals()
    totals.add(Usage(10, 21), Timings(0.0, 0.5, 2.0))
    service = make_service(readings=nano_readings(tmp_path / "nano", worker, totals), state_interval_s=1)
    with Caller(broker.port, "edgekit/box/status") as caller:
        online = caller.next()
    with Caller(broker.port, STATE) as caller:
        message = caller.message()
        assert (message.retain, message.qos, caller.property(message, "ContentType")) == (True, 1, "application/json")
        state = json.loads(message.payload)
        assert shape(state) == shape(documented("state")[0])
        assert (state["session"], state["state"], state["model"]) == (online["session"], "ready", MODEL.name)
        assert (state["load"], state["credits"], state["decode_tokens_per_s"]) == (0.25, 7, 10.0)
        # A change is told without a reconnect.
        worker.waiting = 3
        assert caller.next()["queue"] == 3
        service.stop()
