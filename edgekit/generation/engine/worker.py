"""The engine worker: the thread that runs one model's engine, and the `submit` that both APIs call.

The thread runs `Engine.step` in a loop. It updates a heartbeat in every step, and while idle, from which the service's
watchdog is fed: a hanging step stops it. Requests are submitted and cancelled from any thread.

An unexpected error in a step, or a runner that can no longer compute a single token, is a fault: all open requests fail
and the engine starts over with empty slots. After several faults in a row without a completed request, or if a slot
cannot be emptied, the worker has failed: it rejects all requests until the process is restarted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from edgekit.errors import EdgekitError, RunnerError, UnavailableError, internal_error
from edgekit.generation.engine.engine import Engine, EngineStats
from edgekit.generation.engine.queue_places import QueuePlaces
from edgekit.generation.engine.request_state import OnEvent, RequestState
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.prefix import PrefixCache
from edgekit.generation.speculative.draft_model import DRAFT_MAX
from edgekit.generation.time_limit import TimeLimit
from edgekit.generation.types import ChatRequest, Event, Failure, Finished
from edgekit.jetson.energy import EnergyMeter

__all__ = ["EngineWorker", "OnEvent", "RequestState", "Served", "shutting_down"]

logger = logging.getLogger(__name__)

_IDLE_S = 1.0
# Time to prepare a request: a full context takes a second or two on a slow processor.
_PREPARE_S = 20.0
# When stopping, a step that hangs longer than this is abandoned with its thread.
_JOIN_S = 60.0
# Assumed duration of a request, before one has ended.
_ASSUMED_S = 5.0
# OpenAI's clients ignore a longer one.
_MAX_RETRY_S = 60.0
# Consecutive faults after which the worker has failed.
_MAX_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine runs, and within which memory.

    Attributes:
        model: The model.
        kv_budget_bytes: As for `Engine`.
        prefix: As for `Engine`.
    """

    model: TextModel
    kv_budget_bytes: int | None = None
    prefix: PrefixCache | None = None


@dataclass(frozen=True, slots=True)
class _Switch:
    change: Callable[[Served], Served]
    limit_s: float
    outcome: Future[None]


class EngineWorker:
    """A request queue and the thread that serves it; `submit` may be called from any thread.

    Args:
        model: Used only by the worker from now on; `stop` closes it.
        max_queue: Maximum waiting requests, beside the running ones.
        max_queue_bytes: Maximum memory of the prompts of all requests; one is accepted whatever its size.
        kv_budget_bytes: As for `Engine`.
        prefix: As for `Engine`; `stop` closes it.
        speculation: As for `Engine`.
        draft_max: As for `Engine`.
        meter: As for `Engine`.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        max_queue: int = 256,
        max_queue_bytes: int = 64 << 20,
        kv_budget_bytes: int | None = None,
        prefix: PrefixCache | None = None,
        speculation: bool = True,
        draft_max: int = DRAFT_MAX,
        meter: EnergyMeter | None = None,
    ) -> None:

        def engine_of(served: Served) -> Engine:
            return Engine(
                served.model,
                kv_budget_bytes=served.kv_budget_bytes,
                prefix=served.prefix,
                speculation=speculation,
                draft_max=draft_max,
                meter=meter,
            )

        self._engine_of = engine_of
        self._served = Served(model, kv_budget_bytes, prefix)
        self._engine = engine_of(self._served)
        self._max_queue = max_queue
        self._switch: _Switch | None = None
        self._max_bytes = max_queue_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self._submitted: deque[RequestState] = deque()
        self._open = 0
        self._places = QueuePlaces()
        self._closing = False
        self._aborting = False
        self._failed = False
        # Since the last completed request.
        self._faults = 0
        self._heartbeat = time.monotonic()
        # By thread: when it began to prepare a request.
        self._prepared_since: dict[int, float] = {}
        # Smoothed time from a request's first slot to its end: rejected clients are told when to retry.
        self._typical_s: float | None = None
        # Clients that were told to retry, and for which no place has become free since.
        self._rejected = 0
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""
        return self.model.info

    @property
    def model(self) -> TextModel:
        """The model; its tokenizer and templates are safe to use from any thread, its runner is the worker's."""
        return self._served.model

    @property
    def max_tokens(self) -> int:
        """Tokens of KV cache that fit into memory: those of one sequence, if it is the only one."""
        return self._engine.max_tokens

    @property
    def max_open(self) -> int:
        """Maximum number of requests: as many run as there are slots, and `max_queue` more may wait."""
        return self._max_queue + self.model.runner.limits.sequence_slots

    @property
    def accepting(self) -> bool:
        """Whether it accepts requests: it has not failed, and `stop` has not been called."""
        return not (self._closing or self._failed)

    @property
    def failed(self) -> bool:
        """Whether it has failed for good; the process must be restarted."""
        return self._failed

    def submit(self, request: ChatRequest, on_event: OnEvent) -> RequestState:
        """Queue a request.

        The prompt is tokenized and the grammar compiled here, on the caller's thread.

        Raises:
            UnavailableError: `overloaded` (the queue is full) or `shutting_down`.
            RequestError: `context_length_exceeded`, `unsupported_schema`, `preparation_timeout`, or the
                chat template rejects the messages.
            RunnerError: `generation_failed`: see `failed`.
            BundleError: The chat template failed.
        """
        submitted = time.monotonic()
        with self._changed:
            self._refuse_if_full(request)
        with self._preparing():
            prepared = self.model.prepare(request, TimeLimit(_PREPARE_S))
        size = prepared.size_bytes
        tracked = self._tracked(on_event, submitted, size, request.client)
        state = RequestState(prepared, tracked, submitted=submitted, wake=self._wake)
        with self._changed:
            self._refuse_if_full(request, size)
            self._open += 1
            self._places.take(request.client, request.share)
            self._bytes += size
            self._submitted.append(state)
            self._changed.notify_all()
        return state

    def count_tokens(self, request: ChatRequest) -> int:
        """Return the number of prompt tokens of a request, which may exceed the context.

        Raises:
            RequestError: The chat template rejects the messages, or it takes too long.
            BundleError: The chat template failed.
        """
        with self._preparing():
            return len(self.model.encode(request, TimeLimit(_PREPARE_S)).tokens)

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the thread last completed a step or checked the queue."""
        # While a switch may take its time, the heartbeat is in the future.
        return max(0.0, time.monotonic() - self._heartbeat)

    def seconds_preparing(self) -> float:
        """Seconds for which the request that has been prepared for longest is being prepared; 0 without one."""
        with self._changed:
            begun = min(self._prepared_since.values(), default=None)
        return 0.0 if begun is None else time.monotonic() - begun

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            self._prepared_since[me] = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                del self._prepared_since[me]

    def queue_length(self) -> int:
        """Number of open requests, running ones included."""
        return self._open

    def stats(self) -> EngineStats:
        """Return the engine's statistics."""
        return self._engine.stats

    def switch(self, change: Callable[[Served], Served], *, limit_s: float) -> None:
        """Change the model between answers: those that have begun end on the old one, those that wait get the new one.

        Returns once the new model answers.

        Args:
            change: Returns what to go on with, called on the worker's thread when no answer is running; it closes what
                it replaces. If it raises an `EdgekitError`, nothing was changed and the old model goes on. Any other
                exception means that there is no model any more: the worker has failed.
            limit_s: Time for `change`; after that the heartbeat counts as missed.

        Raises:
            UnavailableError: `shutting_down`: `stop` was called before.
            RunnerError: `generation_failed`: see `failed`.
            EdgekitError: From `change`.
        """
        outcome: Future[None] = Future()
        with self._changed:
            if self._closing:
                raise shutting_down()
            if self._failed:
                raise _has_failed()
            if self._switch is not None:
                raise RuntimeError("the model is being switched already")
            self._switch = _Switch(change, limit_s, outcome)
            self._changed.notify_all()
        outcome.result()

    def stop(self, drain_s: float = 0.0) -> None:
        """Reject new requests, let open ones finish for `drain_s`, fail the rest, join the thread, close the model.

        Requests that do not finish in time get a `Failure` with code `shutting_down`. Idempotent.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open == 0, timeout=drain_s)
            self._aborting = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            logger.error("the model has not finished its step for %g s; it is abandoned", _JOIN_S)
            return
        if self._served.prefix is not None:
            self._served.prefix.close()
        self.model.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _tracked(self, on_event: OnEvent, submitted: float, size: int, client: str) -> OnEvent:
        def tracked(event: Event) -> None:
            if isinstance(event, Finished | Failure):
                with self._changed:
                    self._open -= 1
                    self._places.give_back(client)
                    self._bytes -= size
                    self._rejected = max(0, self._rejected - 1)
                    if isinstance(event, Finished) and event.reason != "cancelled":
                        self._faults = 0
                        took = time.monotonic() - submitted - event.timings.queue_s
                        before = took if self._typical_s is None else self._typical_s
                        self._typical_s = before + 0.3 * (took - before)
                    self._changed.notify_all()
            on_event(event)

        return tracked

    def _refuse_if_full(self, request: ChatRequest, size: int = 0) -> None:
        if self._closing:
            raise shutting_down()
        if self._failed:
            raise _has_failed()
        places = self._places.limit(request.client, request.share, self.max_open)
        full = self._open >= places
        if full or (self._open and self._bytes + size > self._max_bytes):
            wait_s = self._retry_after_s(max(1, self._open - places + 1))
            self._rejected += 1
            mib = self._bytes >> 20
            raise UnavailableError(
                f"{self._open} requests are already waiting or running"
                + (f", {self._places.of(request.client)} of them of this client" if places < self.max_open else "")
                + ("" if full else f", with {mib} MiB of prompts"),
                hint=f"ask again in about {wait_s:g} s",
                code="overloaded",
                retry_after_s=wait_s,
            )

    def _retry_after_s(self, ending: int) -> float:
        """Estimate when there is a place: as many running requests must end, and one for each client rejected before.

        Args:
            ending: Number of requests that must end before this client has a place.
        """
        now = time.monotonic()
        ages = [now - started for started in self._engine.running_since]
        # A request that runs for longer than others did is expected to run for as long again; so is the first one.
        typical = max([self._typical_s or _ASSUMED_S, *ages])
        first = min((typical - age if age < typical else age for age in ages), default=typical)
        wait_s = first + (ending - 1 + self._rejected) * typical / max(1, len(ages))
        return min(max(1.0, round(wait_s, 1)), _MAX_RETRY_S)

    def _work(self) -> None:
        going = True
        while going:
            self._heartbeat = time.monotonic()
            try:
                going = self._run_once()
            except BaseException as error:
                # BaseException: panics of libraries written in Rust are not an `Exception`.
                logger.critical("generation failed, and all open requests with it", exc_info=error)
                going = self._recover(error)

    def _run_once(self) -> bool:
        """Add submitted requests to the engine and run a step; returns False once it is stopped."""
        engine = self._engine
        with self._changed:
            switch = self._pending_switch()
            if not self._submitted and engine.idle and switch is None:
                if self._closing:
                    return False
                self._changed.wait(_IDLE_S)
            count = len(self._submitted)
        for _ in range(count):
            # One by one, so that a fault loses none.
            engine.add(self._submitted.popleft())
        if self._aborting:
            engine.sweep(abort=shutting_down())
        engine.hold(switch is not None)
        if switch is not None and not engine.busy:
            return self._apply(switch)
        engine.step()
        if engine.step_failed:
            # If the probe fails too, it is a fault of the runner and not of the requests.
            engine.probe()
        return True

    def _pending_switch(self) -> _Switch | None:
        """The switch that is to be made; one that has not begun is given up when the worker stops."""
        switch = self._switch
        if switch is not None and self._closing:
            self._switch = None
            switch.outcome.set_exception(shutting_down())
            return None
        return switch

    def _apply(self, switch: _Switch) -> bool:
        """Change the model; returns whether the thread goes on."""
        self._heartbeat = time.monotonic() + switch.limit_s
        try:
            served = switch.change(self._served)
        except EdgekitError as error:
            self._end_switch(switch, error)
            return True
        except BaseException as error:  # noqa: BLE001  logged there
            return self._lose_model(error)
        try:
            engine = self._engine_of(served)
        except BaseException as error:  # noqa: BLE001  logged there
            return self._lose_model(error)
        queued = self._engine.take_queue()
        self._served, self._engine = served, engine
        for state in queued:
            engine.add(state)
        self._end_switch(switch, None)
        return True

    def _lose_model(self, error: BaseException) -> bool:
        logger.critical("there is no model any more; the daemon must be restarted", exc_info=error)
        self._give_up(self._engine.take_queue())
        return False

    def _end_switch(self, switch: _Switch, error: BaseException | None) -> None:
        self._heartbeat = time.monotonic()
        with self._changed:
            self._switch = None
        if error is None:
            switch.outcome.set_result(None)
        else:
            switch.outcome.set_exception(error)

    def _recover(self, error: BaseException) -> bool:
        """Fail the open requests and start over; returns whether the thread goes on."""
        clean = False
        while not clean and self._faults < _MAX_FAULTS:
            self._faults += 1
            try:
                clean = self._engine.reset(internal_error(error))
            except BaseException as again:
                logger.critical("the engine cannot be reset", exc_info=again)
        if clean and self._faults < _MAX_FAULTS:
            return True
        logger.critical("generation stopped after %d consecutive faults; the daemon must be restarted", self._faults)
        self._give_up([])
        return False

    def _give_up(self, queued: list[RequestState]) -> None:
        """Fail for good, and with it the requests that wait: those queued in the engine, and those that are not yet."""
        with self._changed:
            self._failed = True
            remaining = [*queued, *self._submitted]
            self._submitted.clear()
            switch, self._switch = self._switch, None
        for state in remaining:
            state.fail(_has_failed())
        if switch is not None and not switch.outcome.done():
            switch.outcome.set_exception(_has_failed())


def _has_failed() -> EdgekitError:
    return RunnerError(
        "generation has failed and does not recover",
        hint="restart the daemon; its log says what happened",
        code="generation_failed",
    )


def shutting_down() -> UnavailableError:
    """Return the error of a request that the worker refuses or aborts because of `stop`."""
    return UnavailableError(
        "the daemon is shutting down", hint="ask again in a moment", code="shutting_down", retry_after_s=5.0
    )
