"""Continuous batching: in each step every running answer takes a token, and a piece of one waiting prompt goes along.

One step is one `Runner.run`; what each answer does in it is planned in `planning.py`. When the KV cache's budget is
exhausted the youngest answer gives its slot up and is computed again later; nobody sees it but by the clock.

Everything here happens on one thread. It knows no lock, no door and no file.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgekit.errors import EdgekitError, RequestError, RunnerError, internal_error
from edgekit.generation.draft_model import MOST
from edgekit.generation.drafting import Drafters
from edgekit.generation.fair_queue import FairQueue
from edgekit.generation.model import TextModel
from edgekit.generation.planning import Planned, Planner, slot_of
from edgekit.generation.prefix import PrefixCache, PrefixStats
from edgekit.generation.sequence import Logits, Sequence
from edgekit.generation.slots import Slots
from edgekit.generation.step_cost import StepTimes
from edgekit.generation.ticket import Ticket
from edgekit.runners.base import Chunk

__all__ = ["Engine", "EngineStats"]

logger = logging.getLogger(__name__)

# What a request without `max_tokens` counts for in its client's share.
_USUAL_TOKENS = 256
# Tokens: an answer waits for another's prompt while so many more of it are shared.
_WORTH_WAITING = 32


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing.

    Attributes:
        running: Answers that have a slot.
        waiting: Requests that have not begun, and answers that wait for a slot.
        kv_bytes: KV cache in the slots, the draft model's too.
        draft_kv_bytes: The draft model's part of it.
        kv_budget_bytes: Most it may be.
        preempted: Answers that gave up their slot, since the start.
        prefix: The prefix cache's own; None without one.
    """

    running: int
    waiting: int
    kv_bytes: int
    draft_kv_bytes: int
    kv_budget_bytes: int
    preempted: int
    prefix: PrefixStats | None


class Engine:
    """Answers requests on one model.

    Args:
        model: Used by nobody else meanwhile.
        kv_budget_bytes: Most KV cache in memory, the draft model's included; None is what the slots can hold.
        prefix: Keeps KV cache beyond the slots; None keeps none.
        speculation: Guess tokens for requests that do not say.
        draft_max: How many tokens the draft model guesses at most, if there is one.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        kv_budget_bytes: int | None = None,
        prefix: PrefixCache | None = None,
        speculation: bool = True,
        draft_max: int = MOST,
    ) -> None:
        self._model = model
        self._runner = model.runner
        self._limits = model.runner.limits
        self._drafters = Drafters(model.draft, self._limits, self._verifying, most=draft_max)
        self._slots = Slots(model.runner, budget_bytes=self._drafters.leave(kv_budget_bytes), prefix=prefix)
        self._prefix = prefix
        self._context = min(model.info.context_length, self._slots.most_tokens)
        self._speculation = speculation
        self._queue: FairQueue[Ticket] = FairQueue()
        # Answers that have no slot yet, or no more: they go before what is queued.
        self._starting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._open: list[Ticket] = []
        self._preempted = 0
        self._lost = False
        self._times = StepTimes()
        self._planner = Planner(self._slots, self._limits, self._times, self._drafters)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._queue and not self._starting and not self._running

    @property
    def most_tokens(self) -> int:
        """Tokens of KV cache that all slots may hold together."""
        return self._slots.most_tokens

    @property
    def running(self) -> int:
        """Answers that have a slot; may be read from any thread."""
        return len(self._running)

    @property
    def lost(self) -> bool:
        """Whether the last step failed for everybody in it; `probe` tells whether that is the runner's fault."""
        return self._lost

    @property
    def stats(self) -> EngineStats:
        """What it is doing; may be read from any thread."""
        most, drafted = self._slots.most_tokens, self._drafters.kv_bytes
        return EngineStats(
            running=self.running,
            waiting=len(self._queue) + len(self._starting),
            kv_bytes=self._slots.kv_bytes + drafted,
            draft_kv_bytes=drafted,
            kv_budget_bytes=most * self._limits.kv_bytes_per_token + self._drafters.most_bytes(most),
            preempted=self._preempted,
            prefix=None if self._prefix is None else self._prefix.stats(),
        )

    def add(self, ticket: Ticket) -> None:
        """Queue a request. One that could never fit the budget has failed when this returns."""
        request = ticket.request
        least, budget = len(ticket.prompt) + 1, self._slots.most_tokens
        asked = least if request.max_tokens is None else len(ticket.prompt) + request.max_tokens
        if min(asked, self._limits.context_length) > budget:
            ticket.fail(
                RequestError(
                    f"prompt and answer take {asked} tokens of KV cache; there is memory for {budget}",
                    hint="shorten the messages, or ask for fewer tokens",
                    code="context_length_exceeded",
                    param="messages" if least > budget else "max_tokens",
                )
            )
            return
        self._open.append(ticket)
        cost = len(ticket.prompt) + request.n * (request.max_tokens or _USUAL_TOKENS)
        self._queue.push(ticket, client=request.client, cost=cost, priority=request.priority)

    def sweep(self, abort: EdgekitError | None = None) -> None:
        """End requests that nobody wants any more: cancelled, or past their deadline.

        Args:
            abort: End all of them, with this error.
        """
        now = time.monotonic()
        for ticket in list(self._open):
            if ticket.cancelled:
                self._drop(ticket)
                ticket.finish("cancelled")
                continue
            try:
                if abort is not None:
                    raise abort
                ticket.check(now)
            except EdgekitError as error:
                self._fail(ticket, error)

    def reset(self, error: EdgekitError) -> bool:
        """Give everything up after a fault, and start over: all requests fail, all slots are emptied.

        Args:
            error: What the requests fail with.

        Returns:
            Whether the engine can go on. If not, the runner holds on to a slot; trying again may help.
        """
        sequences = [*self._running, *self._starting]
        self._running, self._starting, self._queue = [], deque(), FairQueue()
        for sequence in sequences:
            with _logged(f"request {sequence.ticket.id} could not be closed"):
                sequence.close()
        self._drafters.reset()
        clean = self._slots.reset()
        while self._open:
            self._open.pop(0).fail(error)
        return clean

    def probe(self) -> None:
        """Let the runner compute one token where no answer is; raises what it raises."""
        number = self._slots.clear()
        if number is not None:
            self._runner.run([Chunk(number, [0])])
            self._runner.truncate(number, 0)

    def step(self) -> None:
        """Let every running answer take its next tokens; start what there is room for.

        What goes wrong with one request fails that request. Raises what nobody expected: then call `reset`.
        """
        self._lost = False
        self.sweep()
        self._admit()
        planned = self._plan()
        if planned:
            self._run(planned)

    def _admit(self) -> None:
        """Give slots to what waits, in order, while there are any."""
        while self._slots.free:
            if not self._starting:
                if not self._queue:
                    return
                self._begin(self._queue.pop())
                continue
            sequence = self._starting[0]
            ticket = sequence.ticket
            if self._soon_shared(sequence):
                return
            try:
                taken = self._slots.take(
                    sequence.tokens,
                    ticket.request.tenant,
                    # Where its prompt's own logits are wanted, all of it is computed.
                    reuse=ticket.request.cache_prompt and not sequence.scoring,
                    private=not ticket.request.cache_prompt,
                )
            except Exception as error:  # noqa: BLE001  the request fails with it
                self._fail(ticket, _described(ticket, error))
                continue
            if taken is None:
                return
            self._starting.popleft()
            sequence.slot, held = taken
            # The answers of one request share their prompt, and an answer that comes back its own.
            if ticket.completion_tokens == 0 and sequence.index == 0:
                ticket.cached_tokens = held
            ticket.start()
            self._running.append(sequence)

    def _soon_shared(self, sequence: Sequence) -> bool:
        """Whether a running answer is about to compute what this one begins with; then it is worth the wait."""
        if not sequence.waiting_alike:
            return False
        for other in self._running:
            if other.waiting_alike and other.ticket.request.tenant == sequence.ticket.request.tenant:
                held = self._slots.length(slot_of(other))
                ahead = min(held + _WORTH_WAITING, other.prompt_length, sequence.prompt_length - 1)
                if held < ahead and other.tokens[:ahead] == sequence.tokens[:ahead]:
                    return True
        return False

    def _begin(self, ticket: Ticket) -> None:
        request = ticket.request
        speculate = self._speculation if request.speculation is None else request.speculation
        for index in range(request.n):
            drafter = self._drafters.make() if speculate else None
            try:
                self._starting.append(Sequence(self._model, ticket, index, drafter, self._context))
            except Exception as error:  # noqa: BLE001  as above
                self._fail(ticket, _described(ticket, error))
                return

    def _verifying(self, drafted: int) -> float:
        return self._times.verifying(drafted, len(self._running))

    def _plan(self) -> list[Planned]:
        """What each running answer does in this step; they fit the budget together."""
        self._planner.begin_step()
        while True:
            planned = self._planner.known(self._running)
            if self._slots.make_room(self._planner.grown(planned)):
                # Only now: nobody gives a slot up for guesses, and they are made once.
                return self._planner.guess(planned, beside=len(self._running) - 1)
            self._preempt()

    def _preempt(self) -> None:
        """Take the youngest answer's slot away; it goes on later from where it was."""
        if len(self._running) == 1:
            sequence = self._running[0]
            self._fail(
                sequence.ticket,
                RequestError(
                    f"the answer has no more room: there is memory for {self._slots.most_tokens} tokens of KV cache",
                    hint="ask for fewer tokens",
                    code="context_length_exceeded",
                    param="max_tokens",
                ),
            )
            return
        sequence = self._running.pop()
        self._slots.release(slot_of(sequence), keep=False)
        sequence.lose_slot()
        self._starting.appendleft(sequence)
        self._preempted += 1

    def _run(self, planned: list[Planned]) -> None:
        started = time.monotonic()
        try:
            results = self._runner.run([one.chunk for one in planned])
        except RunnerError as error:
            self._run_apart(planned, error)
            return
        except Exception as error:
            logger.exception("a step failed")
            self._run_apart(planned, internal_error(error))
            return
        self._observe(planned, time.monotonic() - started)
        for one, logits in zip(planned, results, strict=True):
            self._take(one, logits)

    def _run_apart(self, planned: list[Planned], error: EdgekitError) -> None:
        """After a step that failed: each answer by itself, so that only the one at fault fails."""
        self._lost = True
        for one in planned:
            slot = one.chunk.slot
            if one.sequence.ticket.over:
                # Another answer to the same request has failed, and the slots of both are given back.
                continue
            if len(planned) == 1 or self._runner.length(slot) != one.held:
                self._fail(one.sequence.ticket, error)
                continue
            try:
                (logits,) = self._runner.run([one.chunk])
            except Exception as again:  # noqa: BLE001  the answer fails with it
                self._fail(one.sequence.ticket, again if isinstance(again, EdgekitError) else internal_error(again))
            else:
                self._lost = False
                self._take(one, logits)

    def _take(self, one: Planned, logits: Logits) -> None:
        """Hand a step's outcome to its answer."""
        sequence, slot, ticket = one.sequence, one.chunk.slot, one.sequence.ticket
        if ticket.over:
            return
        self._slots.advance(slot, list(one.chunk.tokens), exact=one.chunk.exact)
        ticket.kv_bytes = max(ticket.kv_bytes, self._slots.slot_bytes(slot))
        ticket.steps += one.whole and sequence.made > 0
        try:
            if one.whole:
                right = sequence.take(one.held, logits, one.drafted)
                self._slots.cut(slot, one.held + len(one.chunk.tokens) - len(one.drafted) + right)
            else:
                sequence.take_prompt(one.held, logits)
            if ticket.request.cache_prompt and one.held < sequence.prompt_length:
                self._slots.save(slot, upto=sequence.prompt_length)
        except Exception as error:  # noqa: BLE001  as above
            self._fail(ticket, _described(ticket, error))
        else:
            if sequence.reason is not None:
                self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """An answer is complete."""
        ticket = sequence.ticket
        self._running.remove(sequence)
        if ticket.request.cache_prompt:
            self._slots.save(slot_of(sequence), upto=len(sequence.tokens))
        self._slots.release(slot_of(sequence), keep=ticket.request.cache_prompt)
        sequence.close()
        if ticket.answered(sequence.index, sequence.reason or "stop"):
            # Over before anybody hears of it: who asks again at the last event finds the place free.
            self._open.remove(ticket)
            ticket.finish()

    def _fail(self, ticket: Ticket, error: EdgekitError) -> None:
        self._drop(ticket)
        ticket.fail(error)

    def _drop(self, ticket: Ticket) -> None:
        """Forget a request and its answers."""
        if ticket in list(self._queue):
            self._queue.remove(ticket)
        self._starting = deque(sequence for sequence in self._starting if sequence.ticket is not ticket)
        for sequence in [sequence for sequence in self._running if sequence.ticket is ticket]:
            self._running.remove(sequence)
            # A step that failed may have left anything behind.
            number = slot_of(sequence)
            sound = self._runner.length(number) == self._slots.length(number)
            self._slots.release(number, keep=sound and ticket.cancelled and ticket.request.cache_prompt)
            sequence.close()
        # Last: if anything above raises, `reset` must still know of it.
        self._open.remove(ticket)

    def _observe(self, planned: list[Planned], seconds: float) -> None:
        """Learn what steps cost."""
        alone = len(planned[0].chunk.tokens) if len(planned) == 1 else 0
        if alone and planned[0].whole:
            self._times.alone(alone, seconds)
        pieces = [one for one in planned if one.held < one.sequence.prompt_length or len(one.chunk.tokens) > 1]
        if not pieces:
            self._times.decoded(seconds)
        elif alone and self._times.prefilled(alone, seconds) and self._prefix is not None:
            self._prefix.computed(alone, seconds)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Go on after whatever fails in it."""
    try:
        yield
    except Exception:
        logger.exception(what)


def _described(ticket: Ticket, error: Exception) -> EdgekitError:
    """What a request fails with that an exception is the fault of."""
    if isinstance(error, EdgekitError):
        return error
    logger.error("request %s failed", ticket.id, exc_info=error)
    return internal_error(error)
