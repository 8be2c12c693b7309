"""Unexpected errors of a real runner in the middle of a step: nothing hangs, and what can go on goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.health import Watchdog
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.notify import Notifier
from edgekit.errors import RunnerError
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.types import ChatRequest, Delta, Event, Failure, Finished, Message, Sampling
from tests.generation.bundles import tiny_bundle
from tests.generation.engine.test_worker import Receiver
from tests.generation.faults import Faults

pytestmark = pytest.mark.serial

SLOTS = 3
ASK = {"messages": [{"role": "user", "content": "the sum"}]}


class Panic(BaseException):
    """Like the panics of libraries written in Rust: not an `Exception`."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), "onnx", bits=8)


@pytest.fixture
def model(bundle: Path) -> TextModel:
    """Closed by its worker."""
    return load_model(bundle, threads=1, parallel=SLOTS)


@pytest.fixture
def faults(model: TextModel) -> Faults:
    return Faults(model.runner)


@pytest.fixture
def worker(model: TextModel, faults: Faults) -> Iterator[EngineWorker]:
    worker = EngineWorker(model)
    yield worker
    faults.breaks()
    worker.stop()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL + 1):
        yield


def _ask(content: str = "what is the sum", **fields: object) -> ChatRequest:
    fields = {"max_tokens": 8, "sampling": Sampling(temperature=0), "cache_prompt": False, **fields}
    return ChatRequest("r", (Message("user", content),), **fields)  # type: ignore[arg-type]


def _answer(worker: EngineWorker, content: str = "what is the sum", *, cache_prompt: bool = False) -> str:
    receiver = Receiver()
    worker.submit(_ask(content, cache_prompt=cache_prompt), receiver)
    last = receiver.wait()
    assert isinstance(last, Finished), last
    return receiver.text


def _code(last: Finished | Failure) -> str:
    return last.error.code if isinstance(last, Failure) else last.reason


def _endless(content: str) -> ChatRequest:
    # It never ends before the fault, whatever the random weights are; its slot is emptied at its end, and not truncated
    # for a rejected draft token before, where a fault would fail it alone.
    sampling = Sampling(temperature=1.5, logit_bias={2: -100.0})
    return _ask(content, max_tokens=150, sampling=sampling, speculation=False)


def _failing(worker: EngineWorker, faults: Faults, verb: str, *raised: BaseException) -> list[str]:
    """How three running requests end if the next calls of a runner method raise once all of them run."""
    submitted = threading.Event()
    receivers = [Receiver() for _ in range(SLOTS)]
    begun: set[int] = set()

    def receives(number: int) -> Callable[[Event], None]:
        def receive(event: Event) -> None:
            receivers[number](event)
            if isinstance(event, Delta):
                # On the worker's thread: it waits for the other requests, and then runs into the fault.
                assert submitted.wait(20)
                begun.add(number)
                if len(begun) == SLOTS:
                    begun.add(-1)
                    faults.next(verb, raised)

        return receive

    for number in range(SLOTS):
        worker.submit(_endless(f"question {number}"), receives(number))
    submitted.set()
    return [_code(receiver.wait()) for receiver in receivers]


@pytest.mark.parametrize(
    ("verb", "fault"),
    [("truncate", ValueError("odd")), ("truncate", RunnerError("no")), ("run", Panic("at lib.rs:1"))],
)
def test_a_fault_fails_what_is_open_and_the_next_request_is_answered_as_before(
    worker: EngineWorker, model: TextModel, faults: Faults, verb: str, fault: BaseException
) -> None:
    before = _answer(worker)
    assert _failing(worker, faults, verb, fault) == ["internal_error"] * SLOTS
    assert (worker.queue_length(), worker.stats().running, worker.stats().kv_bytes) == (0, 0, 0)
    assert [model.runner.length(slot) for slot in range(SLOTS)] == [0] * SLOTS
    assert (worker.failed, worker.accepting) == (False, True)
    assert _answer(worker) == before
    assert worker.seconds_since_heartbeat() < 2


def test_a_slot_that_cannot_be_emptied_at_first_is_tried_again(worker: EngineWorker, faults: Faults) -> None:
    before = _answer(worker)
    # The step's own, then the first slot's.
    assert _failing(worker, faults, "truncate", OSError("busy"), OSError("busy")) == ["internal_error"] * SLOTS
    assert not worker.failed
    assert [_answer(worker) for _ in range(SLOTS)] == [before] * SLOTS


def test_what_waits_fails_with_it_and_what_arrives_meanwhile_does_not(worker: EngineWorker, faults: Faults) -> None:
    submitted, failing, arrived = threading.Event(), threading.Event(), threading.Event()
    waiting, arriving = Receiver(), Receiver()
    first: list[Event] = []

    def receive(event: Event) -> None:
        # On the worker's thread, before the fault and while the first request is being failed.
        if isinstance(event, Delta) and not first:
            first.append(event)
            assert submitted.wait(20)
            faults.next("run", [Panic("at lib.rs:1")])
        elif isinstance(event, Failure):
            failing.set()
            assert arrived.wait(20)

    for number in range(SLOTS):
        worker.submit(_endless(f"question {number}"), receive)
    worker.submit(_ask(), waiting)
    submitted.set()
    assert failing.wait(20)
    worker.submit(_ask(), arriving)
    arrived.set()
    assert _code(waiting.wait()) == "internal_error"
    assert _code(arriving.wait()) in {"stop", "length"}


def test_faults_with_answers_between_them_never_end_it(worker: EngineWorker, faults: Faults) -> None:
    before = _answer(worker)
    for _ in range(5):
        assert _failing(worker, faults, "run", Panic()) == ["internal_error"] * SLOTS
        assert _answer(worker) == before
    assert not worker.failed


@pytest.mark.parametrize("verb", ["run", "truncate"])
def test_after_faults_in_a_row_it_refuses_requests_and_is_unhealthy(
    worker: EngineWorker, faults: Faults, verb: str
) -> None:
    watchdog = Watchdog(worker.seconds_since_heartbeat, Notifier({}), failed=lambda: worker.failed)
    server = HttpServer(HttpConfig(port=0), worker, worker.info, Metrics(), watchdog)
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            assert [http.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
            # A runner that empties no slot fails the worker at once; one that panics, the third time.
            times = 3 if verb == "run" else 1
            for _ in range(times):
                assert not worker.failed
                raised = [Panic()] if verb == "run" else [OSError("gone") for _ in range(1000)]
                assert _failing(worker, faults, verb, *raised) == ["internal_error"] * SLOTS
            end = time.monotonic() + 10
            while not worker.failed and time.monotonic() < end:
                time.sleep(0.01)
            with pytest.raises(RunnerError) as caught:
                worker.submit(_ask(), Receiver())
            assert caught.value.code == "generation_failed"
            assert "restart" in (caught.value.hint or "")
            response = http.post("/v1/chat/completions", json=ASK)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "generation_failed")
            assert [http.get(path).status_code for path in ("/healthz", "/readyz")] == [503, 503]
            assert "failed" in http.get("/readyz").text
    finally:
        server.stop()
    assert worker.queue_length() == 0
    started = time.monotonic()
    worker.stop(drain_s=60)
    assert time.monotonic() - started < 30, "a worker that failed has nothing to wait for"


def test_a_runner_that_computes_nothing_any_more_fails_the_worker_and_not_only_its_requests(
    worker: EngineWorker, faults: Faults
) -> None:
    before = _answer(worker)
    faults.breaks("run")
    for _ in range(2):
        assert _refused(worker) == "internal_error"
    faults.breaks()
    # It was broken for a while: after one answer, the count starts over.
    assert _answer(worker) == before
    faults.breaks("run")
    for _ in range(3):
        assert not worker.failed
        assert _refused(worker) == "internal_error"
    end = time.monotonic() + 10
    while not worker.failed and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(RunnerError, match="does not recover"):
        worker.submit(_ask(), Receiver())


def test_requests_that_alone_cannot_be_computed_never_end_it(worker: EngineWorker, faults: Faults) -> None:
    before = _answer(worker, cache_prompt=True)
    for _ in range(8):
        faults.next("run", [RunnerError("too odd")])
        assert _refused(worker) == "runner_failed"
    assert _answer(worker, cache_prompt=True) == before
    assert not worker.failed


def _refused(worker: EngineWorker) -> str:
    receiver = Receiver()
    worker.submit(_ask(), receiver)
    return _code(receiver.wait())


def test_one_request_whose_slot_cannot_be_prepared_fails_alone(model: TextModel, faults: Faults) -> None:
    engine = Engine(model)
    events: dict[str, list[Event]] = {"running": [], "other": [], "next": []}

    def ask(name: str) -> None:
        prepared = model.prepare(_endless(name))
        engine.add(RequestState(prepared, events[name].append, submitted=time.monotonic()))

    ask("running")
    while not events["running"]:
        engine.step()
    faults.next("truncate", [ValueError("odd")])
    ask("other")
    engine.step()
    (failure,) = events["other"]
    assert isinstance(failure, Failure)
    assert failure.error.code == "internal_error"
    ask("next")
    while not engine.idle:
        engine.step()
    assert [type(events[name][-1]) for name in ("running", "next")] == [Finished, Finished]
    model.close()
