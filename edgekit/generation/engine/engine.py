"""Continuous batching: each step generates tokens for all running sequences and prefills a chunk of one waiting prompt.

One step is one `Runner.run`, planned in `step_plan.py`. When the KV budget runs out, the most recently admitted
sequence is preempted and recomputed later. Output is unchanged; only latency is.

All methods run on one thread unless they say otherwise.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass

from edgekit.errors import EdgekitError, RequestError, RunnerError, internal_error
from edgekit.generation.engine.fair_queue import FairQueue
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.engine.sequence import Logits, SequenceState
from edgekit.generation.engine.slots import Slots
from edgekit.generation.engine.step_energy import StepEnergy
from edgekit.generation.engine.step_plan import ScheduledChunk, StepPlanner, slot_of
from edgekit.generation.model import TextModel
from edgekit.generation.prefix import PrefixCache, PrefixStats
from edgekit.generation.speculative.draft_model import DRAFT_MAX
from edgekit.generation.speculative.drafters import Drafters
from edgekit.generation.speculative.step_cost import StepTimes
from edgekit.jetson.energy import EnergyMeter
from edgekit.runners.base import Chunk

__all__ = ["Engine", "EngineStats"]

logger = logging.getLogger(__name__)

# Cost, in its client's share, of a request without `max_tokens`.
_DEFAULT_MAX_TOKENS = 256
# Tokens: a sequence waits for another one's prefill if that will share so many more with it.
_WORTH_WAITING = 32


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges and counters of the engine.

    Attributes:
        running: Sequences that have a slot.
        waiting: Queued requests, and sequences that wait for a slot.
        kv_bytes: KV cache in the slots, the draft model's included.
        draft_kv_bytes: The draft model's part of it.
        kv_budget_bytes: Its maximum.
        preempted: Preempted sequences since the start.
        prefix: The prefix cache's statistics; None without one.
    """

    running: int
    waiting: int
    kv_bytes: int
    draft_kv_bytes: int
    kv_budget_bytes: int
    preempted: int
    prefix: PrefixStats | None


class Engine:
    """Generates for many requests on one model.

    Args:
        model: Not used elsewhere meanwhile.
        kv_budget_bytes: Maximum KV cache in memory, the draft model's included; None is the slots' capacity.
        prefix: Keeps KV cache that has left the slots; None turns it off.
        speculation: Speculative decoding for requests that do not set it.
        draft_max: Maximum draft tokens per step from the draft model, if there is one.
        meter: Measures the energy of the steps; None reports none.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        kv_budget_bytes: int | None = None,
        prefix: PrefixCache | None = None,
        speculation: bool = True,
        draft_max: int = DRAFT_MAX,
        meter: EnergyMeter | None = None,
    ) -> None:
        self._model = model
        self._energy = StepEnergy(meter)
        self._runner = model.runner
        self._limits = model.runner.limits
        self._drafters = Drafters(model.draft, self._limits, self._verify_cost, draft_max=draft_max)
        self._slots = Slots(model.runner, budget_bytes=self._drafters.main_budget(kv_budget_bytes), prefix=prefix)
        self._prefix = prefix
        self._context_length = model.info.context_length
        self._context = min(model.info.context_length, self._slots.longest)
        self._speculation = speculation
        self._queue: FairQueue[RequestState] = FairQueue()
        # Sequences without a slot, new or preempted: they are admitted before the queue.
        self._waiting: deque[SequenceState] = deque()
        self._running: list[SequenceState] = []
        self._open: list[RequestState] = []
        self._preempted = 0
        self._step_failed = False
        self._holding = False
        self._times = StepTimes()
        self._planner = StepPlanner(self._slots, self._limits, self._times, self._drafters)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._queue and not self._waiting and not self._running

    @property
    def busy(self) -> bool:
        """Whether an answer has begun and not ended."""
        return bool(self._waiting or self._running)

    @property
    def max_tokens(self) -> int:
        """Tokens of KV cache that fit into memory: those of one sequence, if it is the only one."""
        return self._slots.longest

    @property
    def running(self) -> int:
        """Number of sequences that have a slot; may be read from any thread."""
        return len(self._running)

    @property
    def running_since(self) -> list[float]:
        """By `time.monotonic()`, when the requests that have a slot got it; may be read from any thread."""
        states = {id(sequence.state): sequence.state for sequence in list(self._running)}
        return [state.started for state in states.values() if state.started is not None]

    @property
    def step_failed(self) -> bool:
        """Whether the last step failed for every sequence in it; `probe` tells whether the runner is at fault."""
        return self._step_failed

    @property
    def stats(self) -> EngineStats:
        """Current statistics; may be read from any thread."""
        max_tokens, draft_bytes = self._slots.max_tokens, self._drafters.kv_bytes
        return EngineStats(
            running=self.running,
            waiting=len(self._queue) + len(self._waiting),
            kv_bytes=self._slots.kv_bytes + draft_bytes,
            draft_kv_bytes=draft_bytes,
            kv_budget_bytes=max_tokens * self._limits.kv_bytes_per_token + self._drafters.max_kv_bytes(max_tokens),
            preempted=self._preempted,
            prefix=None if self._prefix is None else self._prefix.stats(),
        )

    def add(self, state: RequestState) -> None:
        """Queue a request. One that can never fit the budget has failed when this returns."""
        request = state.request
        minimum, budget = len(state.prompt) + 1, self._slots.longest
        needed = minimum if request.max_tokens is None else len(state.prompt) + request.max_tokens
        if min(needed, self._limits.context_length) > budget:
            state.fail(
                RequestError(
                    f"prompt and answer need {needed} tokens of KV cache; there is memory for {budget}",
                    hint="shorten the messages, or request fewer tokens",
                    code="context_length_exceeded",
                    param="messages" if minimum > budget else "max_tokens",
                )
            )
            return
        if minimum > self._context_length:
            # It was prepared for a model with a longer context.
            state.fail(
                RequestError(
                    f"the prompt has {len(state.prompt)} tokens; the context holds {self._context_length}, answer "
                    "included",
                    hint="shorten the messages",
                    code="context_length_exceeded",
                    param="messages",
                )
            )
            return
        self._open.append(state)
        cost = len(state.prompt) + request.n * (request.max_tokens or _DEFAULT_MAX_TOKENS)
        self._queue.push(state, client=request.client, cost=cost, priority=request.priority, share=request.share)

    def hold(self, holding: bool) -> None:
        """Begin no further answers while `holding`; those that have begun go on."""
        self._holding = holding

    def take_queue(self) -> list[RequestState]:
        """Remove and return the requests whose answers have not begun, in the order in which they would.

        Call it while the engine is not `busy`; it must not be used afterwards.
        """
        taken = [self._queue.pop() for _ in range(len(self._queue))]
        self._open = []
        return taken

    def sweep(self, abort: EdgekitError | None = None) -> None:
        """End requests that were cancelled or whose deadline has passed.

        Args:
            abort: End all requests, with this error.
        """
        now = time.monotonic()
        for state in list(self._open):
            if state.cancelled:
                self._drop(state)
                state.finish("cancelled")
                continue
            try:
                if abort is not None:
                    raise abort
                state.check_deadline(now)
            except EdgekitError as error:
                self._fail(state, error)

    def reset(self, error: EdgekitError) -> bool:
        """Start over after a fault: fail all requests and empty all slots.

        Args:
            error: What the requests fail with.

        Returns:
            Whether the engine can go on. If not, the runner could not empty a slot; calling it again may help.
        """
        sequences = [*self._running, *self._waiting]
        self._running, self._waiting, self._queue = [], deque(), FairQueue()
        for sequence in sequences:
            try:
                sequence.close()
            except Exception:  # noqa: PERF203  the other sequences are closed all the same
                logger.exception("request %s could not be closed", sequence.state.id)
        self._drafters.reset()
        clean = self._slots.reset()
        while self._open:
            self._open.pop(0).fail(error)
        return clean

    def probe(self) -> None:
        """Run one token in a free slot, if there is one; raises what the runner raises."""
        number = self._slots.empty_any()
        if number is not None:
            self._runner.run([Chunk(number, [0])])
            self._runner.truncate(number, 0)

    def step(self) -> None:
        """Admit what fits, and run one step.

        An error of one request fails that request. After any exception raised here, call `reset`.
        """
        self._step_failed = False
        self.sweep()
        if not self._running and not self.idle:
            self._energy.begin()
        self._admit()
        planned = self._plan()
        if planned:
            self._run(planned)

    def _admit(self) -> None:
        """Assign slots to waiting sequences, in order, while there are any."""
        while self._slots.free:
            if not self._waiting:
                if self._holding or not self._queue:
                    return
                self._start(self._queue.pop())
                continue
            sequence = self._waiting[0]
            state = sequence.state
            if self._prefix_in_progress(sequence):
                return
            try:
                assigned = self._slots.acquire(
                    sequence.tokens,
                    state.request.tenant,
                    # Prompt logprobs need the logits of the entire prompt.
                    reuse=state.request.cache_prompt and not sequence.scoring,
                    private=not state.request.cache_prompt,
                )
            except Exception as error:  # noqa: BLE001  the request fails with it
                self._fail(state, _wrapped(state, error))
                continue
            if assigned is None:
                return
            self._waiting.popleft()
            sequence.slot, length = assigned
            # Not for further choices, which share this prompt, nor for preempted sequences, which reuse their own.
            if state.completion_tokens == 0 and sequence.index == 0:
                state.cached_tokens = length
            state.start()
            self._running.append(sequence)

    def _prefix_in_progress(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is prefilling a common prefix that is worth waiting for."""
        if not sequence.can_share_prompt:
            return False
        for other in self._running:
            if other.can_share_prompt and other.state.request.tenant == sequence.state.request.tenant:
                length = self._slots.length(slot_of(other))
                target = min(length + _WORTH_WAITING, other.prompt_length, sequence.prompt_length - 1)
                if length < target and other.tokens[:target] == sequence.tokens[:target]:
                    return True
        return False

    def _start(self, state: RequestState) -> None:
        request = state.request
        speculate = self._speculation if request.speculation is None else request.speculation
        for index in range(request.n):
            drafter = self._drafters.new() if speculate else None
            try:
                self._waiting.append(SequenceState(self._model, state, index, drafter, self._context))
            except Exception as error:  # noqa: BLE001  as above
                self._fail(state, _wrapped(state, error))
                return

    def _verify_cost(self, drafted: int) -> float:
        return self._times.verify_cost(drafted, len(self._running))

    def _plan(self) -> list[ScheduledChunk]:
        """Schedule the step; all of it fits the budget."""
        self._planner.begin_step()
        while True:
            planned = self._planner.schedule(self._running)
            if self._slots.make_room(self._planner.growth(planned)):
                # Draft tokens only now: they never cause a preemption, and are drafted once.
                return self._planner.add_drafts(planned, others=len(self._running) - 1)
            self._preempt()

    def _preempt(self) -> None:
        """Preempt the most recently admitted sequence; a single one fails."""
        if len(self._running) == 1:
            sequence = self._running[0]
            self._fail(
                sequence.state,
                RequestError(
                    f"the KV cache is full: there is memory for {self._slots.longest} tokens",
                    hint="request fewer tokens",
                    code="context_length_exceeded",
                    param="max_tokens",
                ),
            )
            return
        sequence = self._running.pop()
        self._slots.release(slot_of(sequence), keep=False)
        sequence.preempt()
        self._waiting.appendleft(sequence)
        self._preempted += 1

    def _run(self, planned: list[ScheduledChunk]) -> None:
        started = time.monotonic()
        try:
            results = self._runner.run([one.chunk for one in planned])
        except RunnerError as error:
            self._retry_separately(planned, error)
            return
        except Exception as error:
            logger.exception("a step failed")
            self._retry_separately(planned, internal_error(error))
            return
        seconds = time.monotonic() - started
        self._energy.charge(planned)
        prefilled = self._planner.observe(planned, seconds)
        if prefilled and self._prefix is not None:
            self._prefix.computed(prefilled, seconds)
        for one, logits in zip(planned, results, strict=True):
            self._process(one, logits)

    def _retry_separately(self, planned: list[ScheduledChunk], error: EdgekitError) -> None:
        """After a failed step, run each sequence by itself, so that only the one at fault fails."""
        self._step_failed = True
        for one in planned:
            slot = one.chunk.slot
            if one.sequence.state.done:
                # Another choice of the same request has failed, and both slots are free.
                continue
            if len(planned) == 1 or self._runner.length(slot) != one.start:
                self._fail(one.sequence.state, error)
                continue
            try:
                (logits,) = self._runner.run([one.chunk])
            except Exception as again:  # noqa: BLE001  the request fails with it
                self._fail(one.sequence.state, again if isinstance(again, EdgekitError) else internal_error(again))
            else:
                self._step_failed = False
                self._process(one, logits)

    def _process(self, one: ScheduledChunk, logits: Logits) -> None:
        """Apply a step's result to one sequence and its slot."""
        sequence, slot, state = one.sequence, one.chunk.slot, one.sequence.state
        if state.done:
            return
        self._slots.advance(slot, list(one.chunk.tokens), exact=one.chunk.exact)
        state.kv_bytes = max(state.kv_bytes, self._slots.slot_bytes(slot))
        state.steps += one.samples and sequence.generated > 0
        try:
            if one.samples:
                accepted = sequence.process(one.start, logits, one.drafted)
                self._slots.truncate(slot, one.start + len(one.chunk.tokens) - len(one.drafted) + accepted)
            else:
                sequence.process_prompt(one.start, logits)
            if state.request.cache_prompt and one.start < sequence.prompt_length:
                self._slots.save(slot, upto=sequence.prompt_length)
        except Exception as error:  # noqa: BLE001  as above
            self._fail(state, _wrapped(state, error))
        else:
            if sequence.reason is not None:
                self._finish(sequence)

    def _finish(self, sequence: SequenceState) -> None:
        """Release a sequence that has ended."""
        state = sequence.state
        self._running.remove(sequence)
        if state.request.cache_prompt:
            self._slots.save(slot_of(sequence), upto=len(sequence.tokens))
        self._slots.release(slot_of(sequence), keep=state.request.cache_prompt)
        sequence.close()
        output = sequence.tokens[sequence.prompt_length :]
        if state.finish_choice(sequence.index, sequence.reason or "stop", output):
            # Removed before the last event: a client that submits again on that event finds the queue place free.
            self._open.remove(state)
            state.finish()

    def _fail(self, state: RequestState, error: EdgekitError) -> None:
        self._drop(state)
        state.fail(error)

    def _drop(self, state: RequestState) -> None:
        """Remove a request and its sequences."""
        if state in list(self._queue):
            self._queue.remove(state)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.state is not state)
        for sequence in [sequence for sequence in self._running if sequence.state is state]:
            self._running.remove(sequence)
            # A failed step may have left the slot in any state.
            number = slot_of(sequence)
            intact = self._runner.length(number) == self._slots.length(number)
            self._slots.release(number, keep=intact and state.cancelled and state.request.cache_prompt)
            sequence.close()
        # Last: if anything above raises, `reset` still has to fail it.
        self._open.remove(state)


def _wrapped(state: RequestState, error: Exception) -> EdgekitError:
    """Return the exception as the error that the request fails with."""
    if isinstance(error, EdgekitError):
        return error
    logger.error("request %s failed", state.id, exc_info=error)
    return internal_error(error)
