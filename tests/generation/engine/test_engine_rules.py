"""The engine's invariants, checked after every step, whatever is submitted, cancelled and fails, in any order.

Hypothesis generates the schedules. The runner is the small deterministic one, which detects a wrong token.
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
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.prefix import PrefixCache
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Event, Failure, Finished, Message
from tests.generation.tiny import EchoRunner, echo_model

ANSWER = "Paris is the capital of France."
CONTEXT = 160
PER_TOKEN = 8


class Submitted:
    """A submitted request, and what must be true of it."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.events: list[Event] = []
        self.cancelled = False
        self.expired = False
        self.state: RequestState | None = None

    def __call__(self, event: Event) -> None:
        assert not self.over, "an event after the last"
        self.events.append(event)

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failure)

    @property
    def begun(self) -> bool:
        assert self.state
        return self.state._started is not None

    def text(self, index: int) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta) and event.index == index)


class Schedules(RuleBasedStateMachine):
    """An engine, its clients, and a runner that sometimes fails."""

    asked: list[Submitted]
    failing: list[Exception]

    @initialize(
        slots=st.integers(1, 4),
        tokens=st.sampled_from([None, CONTEXT, CONTEXT * 2]),
        kept=st.booleans(),
        speculation=st.booleans(),
    )
    def begin(self, slots: int, tokens: int | None, kept: bool, speculation: bool) -> None:
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
        self.engine = Engine(self.model, kv_budget_bytes=budget, prefix=prefix, speculation=speculation)

    def _before_step(self, _: int) -> None:
        if self.failing:
            self.failed = True
            raise self.failing.pop()

    @rule(
        client=st.sampled_from("abc"),
        content=st.sampled_from(["Hi", "Hello " * 3, "the same beginning, " * 2 + "and an end", "x" * 70]),
        max_tokens=st.one_of(st.none(), st.integers(1, 40)),
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
        max_tokens: int | None,
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
            max_tokens=max_tokens,
            priority=priority,
            n=n,
            tenant=tenant,
            cache_prompt=kept,
            stop=stop,
        )
        asked = Submitted(request)
        asked.state = RequestState(self.model.prepare(request), asked, submitted=time.monotonic())
        self.asked.append(asked)
        self.engine.add(asked.state)

    @rule(steps=st.integers(1, 20))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self._hold()

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        asked = self.asked[which % len(self.asked)]
        assert asked.state
        if not asked.over:
            asked.cancelled = True
        asked.state.cancel()

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1000))
    def let_its_deadline_pass(self, which: int) -> None:
        asked = self.asked[which % len(self.asked)]
        assert asked.state
        if asked.over or asked.cancelled:
            return
        asked.expired = True
        # As if submitted long ago with a deadline of one second.
        object.__setattr__(asked.state.request, "deadline_s", 1.0)
        asked.state.submitted -= 3600

    @rule(error=st.sampled_from([RunnerError("the device is lost"), ValueError("odd")]), times=st.integers(1, 3))
    def let_steps_fail(self, error: Exception, times: int) -> None:
        # After a failed step, the engine retries each sequence.
        self.failing += [error] * times

    @invariant()
    def hold(self) -> None:
        if hasattr(self, "engine"):
            self._hold()

    def _hold(self) -> None:
        stats = self.engine.stats
        assert stats.running <= self.slots
        used = sum(len(tokens) for tokens in self.runner.slots) * PER_TOKEN
        assert used <= stats.kv_bytes <= self.budget
        for asked in self.asked:
            if isinstance(asked.events[-1] if asked.events else None, Finished):
                self._check_answer(asked)
        self._check_order()

    def _check_answer(self, asked: Submitted) -> None:
        last = asked.events[-1]
        assert isinstance(last, Finished)
        numbers = [
            event.seq for event in asked.events[:-1] if not isinstance(event, ChoiceFinished | Finished | Failure)
        ]
        assert numbers == list(range(len(numbers)))
        assert len(last.reasons) == asked.request.n
        self._check_ends(asked, last)
        expected = ANSWER.partition(asked.request.stop[0])[0] if asked.request.stop else ANSWER
        for index, reason in enumerate(last.reasons):
            text = asked.text(index)
            # If it was cut off within a possible stop string, that part is sent.
            assert ANSWER.startswith(text)
            if reason == "stop":
                assert text == expected
            assert (reason == "cancelled") <= asked.cancelled

    def _check_ends(self, asked: Submitted, last: Finished) -> None:
        """Each choice's end is reported once, when it comes, except the last one's, which is the request's."""
        ended: dict[int, str] = {}
        for event in asked.events[:-1]:
            assert not isinstance(event, Finished | Failure)
            assert event.index not in ended, "an event of a choice that has ended"
            if isinstance(event, ChoiceFinished):
                ended[event.index] = event.reason
        assert ended.items() <= dict(enumerate(last.reasons)).items()
        unreported = [reason for index, reason in enumerate(last.reasons) if index not in ended]
        assert len(unreported) == 1 or set(unreported) == {"cancelled"}

    def _check_order(self) -> None:
        """Requests of one client and priority start in the order of submission."""
        last: dict[tuple[str, int], Submitted] = {}
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
            if asked.cancelled and isinstance(last, Finished):
                # Choices that were complete when it was cancelled keep their own reason.
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
        # Nothing was leaked: a new request is answered.
        self.ask(client="z", content="Hi", max_tokens=None, priority=0, n=1, tenant="", kept=False, stop=())
        self._drain()
        assert self.asked[-1].text(0) == ANSWER

    def _drain(self) -> None:
        for _ in range(5000):
            if self.engine.idle:
                return
            self.engine.step()
            self._hold()
        raise AssertionError("the engine does not finish")


Schedules.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Thousands of failures are injected on purpose here."""
    with caplog.at_level(logging.CRITICAL + 1):
        yield


TestSchedules = Schedules.TestCase
