"""Whatever comes, leaves and fails, in whatever order: what an engine promises to everybody, held at every step.

Hypothesis makes the schedules. The runner is the small deterministic one, which notices a token that is not its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgekit.errors import RunnerError
from edgekit.generation.engine import Engine
from edgekit.generation.prefix import PrefixCache
from edgekit.generation.request import ChatRequest, Delta, Ended, Event, Failure, Finish, Message
from edgekit.generation.ticket import Ticket
from tests.generation.tiny import EchoRunner, echo_model

ANSWER = "Paris is the capital of France."
CONTEXT = 160
PER_TOKEN = 8


class Asked:
    """A request, and what must be true of it."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.events: list[Event] = []
        self.cancelled = False
        self.expired = False
        self.ticket: Ticket | None = None

    def __call__(self, event: Event) -> None:
        assert not self.over, "an event after the last"
        self.events.append(event)

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finish | Failure)

    @property
    def begun(self) -> bool:
        assert self.ticket
        return self.ticket._started is not None

    def text(self, index: int) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta) and event.index == index)


class Schedules(RuleBasedStateMachine):
    """An engine, its callers, and a runner that fails now and then."""

    asked: list[Asked]
    failing: list[Exception]

    @initialize(
        slots=st.integers(1, 4),
        tokens=st.sampled_from([None, CONTEXT, CONTEXT * 2]),
        kept=st.booleans(),
        guess=st.booleans(),
    )
    def begin(self, slots: int, tokens: int | None, kept: bool, guess: bool) -> None:
        self.asked, self.failing = [], []
        self.failed = False
        self.model = echo_model(
            ANSWER, context_length=CONTEXT, max_chunk=16, sequence_slots=slots, before_step=self._before_step
        )
        assert isinstance(self.model.runner, EchoRunner)
        self.runner = self.model.runner
        prefix = None
        if kept:
            prefix = PrefixCache(None, memory_bytes=4096, block_tokens=8, kv_bytes_per_token=PER_TOKEN, fingerprint="x")
        budget = None if tokens is None else tokens * PER_TOKEN
        self.budget = slots * CONTEXT * PER_TOKEN if budget is None else budget
        self.slots = slots
        self.engine = Engine(self.model, kv_budget_bytes=budget, prefix=prefix, speculation=guess)

    def _before_step(self, _: int) -> None:
        if self.failing:
            self.failed = True
            raise self.failing.pop()

    @rule(
        client=st.sampled_from("abc"),
        content=st.sampled_from(["Hi", "Hello " * 3, "the same beginning, " * 2 + "and an end", "x" * 70]),
        most=st.one_of(st.none(), st.integers(1, 40)),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        tenant=st.sampled_from(["", "", "t"]),
        kept=st.booleans(),
        stop=st.sampled_from([(), (), ("capital",)]),
    )
    def ask(
        self,
        *,
        client: str,
        content: str,
        most: int | None,
        priority: int,
        n: int,
        tenant: str,
        kept: bool,
        stop: tuple[str, ...],
    ) -> None:
        request = ChatRequest(
            f"r{len(self.asked)}",
            (Message("user", content),),
            client=client,
            max_tokens=most,
            priority=priority,
            n=n,
            tenant=tenant,
            cache_prompt=kept,
            stop=stop,
        )
        asked = Asked(request)
        asked.ticket = self.model.ticket(request, asked, submitted=time.monotonic())
        self.asked.append(asked)
        self.engine.add(asked.ticket)

    @rule(steps=st.integers(1, 20))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self._hold()

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1000))
    def take_back(self, which: int) -> None:
        asked = self.asked[which % len(self.asked)]
        assert asked.ticket
        if not asked.over:
            asked.cancelled = True
        asked.ticket.cancel()

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1000))
    def let_its_deadline_pass(self, which: int) -> None:
        asked = self.asked[which % len(self.asked)]
        assert asked.ticket
        if asked.over or asked.cancelled:
            return
        asked.expired = True
        # As if it had come long ago, and been willing to wait for a second.
        object.__setattr__(asked.ticket.request, "deadline_s", 1.0)
        asked.ticket.submitted -= 3600

    @rule(error=st.sampled_from([RunnerError("the device is lost"), ValueError("odd")]), times=st.integers(1, 3))
    def let_steps_fail(self, error: Exception, times: int) -> None:
        # After a step that failed, the engine tries its parts.
        self.failing += [error] * times

    @invariant()
    def hold(self) -> None:
        if hasattr(self, "engine"):
            self._hold()

    def _hold(self) -> None:
        stats = self.engine.stats
        assert stats.running <= self.slots
        held = sum(len(tokens) for tokens in self.runner.slots) * PER_TOKEN
        assert held <= stats.kv_bytes <= self.budget
        for asked in self.asked:
            if isinstance(asked.events[-1] if asked.events else None, Finish):
                self._check_answer(asked)
        self._check_order()

    def _check_answer(self, asked: Asked) -> None:
        last = asked.events[-1]
        assert isinstance(last, Finish)
        numbers = [event.seq for event in asked.events[:-1] if not isinstance(event, Ended | Finish | Failure)]
        assert numbers == list(range(len(numbers)))
        assert len(last.reasons) == asked.request.n
        self._check_ends(asked, last)
        expected = ANSWER.partition(asked.request.stop[0])[0] if asked.request.stop else ANSWER
        for index, reason in enumerate(last.reasons):
            text = asked.text(index)
            # Cut off within what might have become a stop text, an answer shows it.
            assert ANSWER.startswith(text)
            if reason == "stop":
                assert text == expected
            assert (reason == "cancelled") <= asked.cancelled

    def _check_ends(self, asked: Asked, last: Finish) -> None:
        """Of several answers each end is told once, when it comes, but the last, which is the request's."""
        ended: dict[int, str] = {}
        for event in asked.events[:-1]:
            assert not isinstance(event, Finish | Failure)
            assert event.index not in ended, "something of an answer that has ended"
            if isinstance(event, Ended):
                ended[event.index] = event.reason
        assert ended.items() <= dict(enumerate(last.reasons)).items()
        untold = [reason for index, reason in enumerate(last.reasons) if index not in ended]
        assert len(untold) == 1 or set(untold) == {"cancelled"}

    def _check_order(self) -> None:
        """Of one client's requests of one priority, none begins before one that came earlier."""
        last: dict[tuple[str, int], Asked] = {}
        for asked in reversed(self.asked):
            key = (asked.request.client, asked.request.priority)
            if asked.begun:
                last.setdefault(key, asked)
            elif key in last:
                assert asked.over, f"{last[key].request.id} has begun before {asked.request.id}"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.failing.clear()
        self._drain()
        for asked in self.asked:
            assert asked.over, f"{asked.request.id} never ended"
            last = asked.events[-1]
            if asked.cancelled and isinstance(last, Finish):
                # What was answered already when it was taken back keeps its own reason.
                assert "cancelled" in last.reasons
            if isinstance(last, Failure):
                known = {"runner_failed", "internal_error"} if self.failed else set()
                known |= {"context_length_exceeded"}
                known |= {"deadline_exceeded"} if asked.expired else set()
                assert last.error.code in known
            elif asked.expired:
                assert asked.cancelled
        self.failed = False
        stats = self.engine.stats
        assert (stats.running, stats.waiting) == (0, 0)
        # Nothing was lost on the way: a fresh request is answered.
        self.ask(client="z", content="Hi", most=None, priority=0, n=1, tenant="", kept=False, stop=())
        self._drain()
        assert self.asked[-1].text(0) == ANSWER

    def _drain(self) -> None:
        for _ in range(5000):
            if self.engine.idle:
                return
            self.engine.step()
            self._hold()
        raise AssertionError("the engine does not come to an end")


Schedules.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Failures are made on purpose here; thousands of them."""
    with caplog.at_level(logging.CRITICAL + 1):
        yield


TestSchedules = Schedules.TestCase
