from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from edgekit.errors import RunnerError
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.model import TextModel
from edgekit.generation.prefix import PrefixCache
from edgekit.generation.speculative.drafters import PromptLookup
from edgekit.generation.types import (
    ChatRequest,
    Delta,
    Event,
    Failure,
    Finished,
    Message,
    ResponseFormat,
    Sampling,
)
from tests.generation.tiny import EchoRunner, echo_model

ANSWER = "Paris is the capital of France."


class Submitted:
    """A submitted request and its events."""

    def __init__(self, engine: Engine, model: TextModel, content: str = "Hello", **fields: object) -> None:
        self.events: list[Event] = []
        request = ChatRequest("r", (Message("user", content),), **fields)  # type: ignore[arg-type]
        self.state = RequestState(model.prepare(request), self.events.append, submitted=time.monotonic())
        engine.add(self.state)

    @property
    def done(self) -> bool:
        return self.state.done

    @property
    def finish(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta) and event.index == index)


def _run(engine: Engine, max_steps: int = 10_000) -> None:
    for _ in range(max_steps):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine does not finish")


def _runner(model: TextModel) -> EchoRunner:
    assert isinstance(model.runner, EchoRunner)
    return model.runner


def test_answers_share_steps() -> None:
    model = echo_model(sequence_slots=4)
    engine = Engine(model)
    asked = [Submitted(engine, model) for _ in range(4)]
    _run(engine)
    assert [one.text() for one in asked] == [ANSWER] * 4
    assert _runner(model).widest == 4
    # Alone each takes 34 steps.
    assert _runner(model).steps < 60


def test_more_requests_than_slots_take_turns() -> None:
    model = echo_model(sequence_slots=2)
    engine = Engine(model)
    asked = [Submitted(engine, model, f"question {number}") for number in range(7)]
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (2, 5)
    _run(engine)
    assert [one.text() for one in asked] == [ANSWER] * 7
    assert (engine.stats.running, engine.stats.waiting) == (0, 0)


def test_a_long_prompt_does_not_stall_a_running_answer() -> None:
    model = echo_model("x" * 60, sequence_slots=2, context_length=4096)
    engine = Engine(model)
    # Sampled, so that no draft tokens come with a step's own.
    running = Submitted(engine, model, sampling=Sampling(temperature=1))
    while not running.events:
        engine.step()
    Submitted(engine, model, "y" * 2000)
    before = len(running.events)
    for _ in range(20):
        engine.step()
    assert len(running.events) == before + 20


def test_a_prompt_that_shares_a_prefix_with_an_earlier_one_computes_only_the_rest() -> None:
    model = echo_model(sequence_slots=2)
    engine = Engine(model)
    first = Submitted(engine, model, "x" * 200 + "one")
    _run(engine)
    before = _runner(model).tokens
    second = Submitted(engine, model, "x" * 200 + "two")
    _run(engine)
    assert second.text() == first.text() == ANSWER
    assert first.finish.usage.cached_tokens == 0
    cached = second.finish.usage.cached_tokens
    assert cached > 200
    assert _runner(model).tokens - before == second.finish.usage.total_tokens - cached - 1


def test_a_prompt_that_shares_a_prefix_with_a_running_one_copies_from_it() -> None:
    model = echo_model("x" * 100, sequence_slots=2)
    engine = Engine(model)
    Submitted(engine, model, "x" * 200 + "one")
    for _ in range(30):
        engine.step()
    second = Submitted(engine, model, "x" * 200 + "two")
    _run(engine)
    assert second.finish.usage.cached_tokens > 200
    assert second.text() == "x" * 100


def test_a_conversation_goes_on_where_it_was() -> None:
    model = echo_model(sequence_slots=2)
    engine = Engine(model)
    _ = Submitted(engine, model, "Hello", sampling=Sampling(temperature=0.0))
    _run(engine)
    history = (Message("user", "Hello"), Message("assistant", ANSWER), Message("user", "And Spain?"))
    events: list[Event] = []
    prepared = model.prepare(ChatRequest("r", history))
    engine.add(RequestState(prepared, events.append, submitted=time.monotonic()))
    _run(engine)
    assert isinstance(events[-1], Finished)
    # The first question and its answer, which was computed exactly.
    assert events[-1].usage.cached_tokens >= len(model.prompt(ChatRequest("r", history[:1])).tokens) + len(ANSWER)


@pytest.mark.parametrize("fields", [{"tenant": "b"}, {"cache_prompt": False}])
def test_a_prompt_is_not_shared_with_another_tenant_or_without_cache_prompt(fields: dict[str, object]) -> None:
    model = echo_model(sequence_slots=1)
    engine = Engine(model)
    _ = Submitted(engine, model, "x" * 100, **({"tenant": "a"} if "tenant" in fields else fields))
    _run(engine)
    again = Submitted(engine, model, "x" * 100, **fields)
    _run(engine)
    assert again.finish.usage.cached_tokens == 0


def test_a_running_prompt_without_cache_prompt_is_not_copied_from() -> None:
    model = echo_model("y" * 50, sequence_slots=2)
    engine = Engine(model)
    Submitted(engine, model, "x" * 100, cache_prompt=False)
    for _ in range(20):
        engine.step()
    second = Submitted(engine, model, "x" * 100)
    _run(engine)
    assert second.finish.usage.cached_tokens == 0


def test_several_choices_of_one_request_each_end_and_the_prompt_is_computed_once() -> None:
    model = echo_model(sequence_slots=2)
    engine = Engine(model)
    asked = Submitted(engine, model, "x" * 300, n=3)
    _run(engine)
    assert [asked.text(index) for index in range(3)] == [ANSWER] * 3
    assert asked.finish.reasons == ("stop",) * 3
    assert asked.finish.usage.completion_tokens == 3 * (len(ANSWER) + 1)
    assert _runner(model).tokens < 2 * len(asked.state.prompt)


def test_priority_goes_before_order_and_clients_share() -> None:
    model = echo_model(sequence_slots=1)
    engine = Engine(model)
    ended: list[str] = []

    def ask(name: str, **fields: object) -> None:
        request = ChatRequest(name, (Message("user", "Hi"),), max_tokens=5, **fields)  # type: ignore[arg-type]
        state = RequestState(
            model.prepare(request),
            lambda event: ended.append(name) if isinstance(event, Finished) else None,
            submitted=time.monotonic(),
        )
        engine.add(state)

    for name in ("a1", "a2", "a3"):
        ask(name, client="a")
    ask("b1", client="b")
    ask("urgent", client="c", priority=-1)
    _run(engine)
    assert ended == ["urgent", "a1", "b1", "a2", "a3"]


def test_the_budget_is_never_exceeded_and_every_request_is_answered() -> None:
    model = echo_model("y" * 80, sequence_slots=4)
    per_token = model.runner.limits.kv_bytes_per_token
    engine = Engine(model, kv_budget_bytes=200 * per_token)
    asked = [Submitted(engine, model, "x" * 40 + str(number), max_tokens=100) for number in range(6)]
    while not engine.idle:
        engine.step()
        assert engine.stats.kv_bytes <= engine.stats.kv_budget_bytes == 200 * per_token
    assert [one.text() for one in asked] == ["y" * 80] * 6
    assert engine.stats.preempted > 0


def test_a_request_that_cannot_fit_the_budget_is_rejected_with_both_numbers() -> None:
    model = echo_model(sequence_slots=2)
    engine = Engine(model, kv_budget_bytes=100 * model.runner.limits.kv_bytes_per_token)
    asked = Submitted(engine, model, "x" * 60, max_tokens=60)
    (event,) = asked.events
    assert isinstance(event, Failure)
    assert event.error.code == "context_length_exceeded"
    assert "100" in event.error.message
    assert engine.idle


def test_an_answer_without_a_limit_ends_with_the_budget_as_a_failure_that_says_so() -> None:
    model = echo_model("y" * 500, sequence_slots=2)
    engine = Engine(model, kv_budget_bytes=100 * model.runner.limits.kv_bytes_per_token)
    asked = Submitted(engine, model, "x" * 40)
    _run(engine)
    last = asked.events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.total_tokens) == ("length", 100)


def test_one_that_fails_takes_no_other_with_it() -> None:
    class Fussy(EchoRunner):
        def run(self, chunks: Sequence) -> list:  # type: ignore[type-arg]
            if any(len(self.slots[chunk.slot]) > 60 for chunk in chunks):
                from edgekit.errors import RunnerError

                raise RunnerError("the slot is cursed")
            return super().run(chunks)

    model = echo_model(sequence_slots=2)
    model.runner.__class__ = Fussy
    engine = Engine(model)
    good, bad = Submitted(engine, model, "x", max_tokens=10), Submitted(engine, model, "x" * 80)
    _run(engine)
    assert good.text() == ANSWER[:10]
    assert isinstance(bad.events[-1], Failure)
    assert bad.events[-1].error.code == "runner_failed"
    assert engine.stats.running == 0


def test_a_request_for_several_choices_fails_once_and_the_next_is_answered() -> None:
    failing: list[RunnerError] = []

    def fail(_: int) -> None:
        if failing:
            raise failing.pop()

    model = echo_model(sequence_slots=3, before_step=fail)
    engine = Engine(model)
    asked = Submitted(engine, model, n=3)
    while not all(asked.text(index) for index in range(3)):
        engine.step()
    # The step of all three, and the retry of the first one.
    failing += [RunnerError("the device is lost")] * 2
    _run(engine)
    assert [type(event) for event in asked.events if not isinstance(event, Delta)] == [Failure]
    after = Submitted(engine, model)
    _run(engine)
    assert after.text() == ANSWER


def test_a_cancelled_request_leaves_its_slot_within_a_step() -> None:
    model = echo_model("x" * 500, sequence_slots=1)
    engine = Engine(model)
    first, second = Submitted(engine, model), Submitted(engine, model, max_tokens=3)
    for _ in range(5):
        engine.step()
    first.state.cancel()
    engine.step()
    assert first.finish.reason == "cancelled"
    assert engine.stats.running == 1
    _run(engine)
    assert second.finish.reason == "length"


def test_sequences_with_forced_tokens_all_advance_in_every_step() -> None:
    model = echo_model(sequence_slots=3)
    engine = Engine(model)
    text = "the quick brown fox jumps over the lazy dog"
    asked = [
        Submitted(engine, model, response_format=ResponseFormat("choice", (f"{text} {number}",))) for number in range(3)
    ]
    _run(engine)
    assert [one.text() for one in asked] == [f"{text} {number}" for number in range(3)]
    # Every token is forced: a few steps, not one per token.
    assert _runner(model).steps < 15


def test_kv_cache_that_has_left_its_slot_is_restored_from_memory() -> None:
    model = echo_model(sequence_slots=1)
    per_token = model.runner.limits.kv_bytes_per_token
    prefix = PrefixCache(None, memory_bytes=10_000 * per_token, kv_bytes_per_token=per_token, fingerprint="m")
    engine = Engine(model, prefix=prefix)
    for letter in "abc":
        Submitted(engine, model, letter * 300)
        _run(engine)
    again = Submitted(engine, model, "a" * 300)
    _run(engine)
    assert again.finish.usage.cached_tokens >= 288
    assert prefix.stats().from_memory_bytes >= 288 * per_token
    # KV cache that is still in the slot is not stored in memory a second time.
    assert prefix.stats().memory_bytes <= 3 * 352 * per_token


def test_tokens_are_drafted_once_a_step_and_never_cause_a_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the same words, " * 8
    drafted_in_step: list[int] = []
    draft = PromptLookup.draft

    def counted(self: PromptLookup, tokens: Sequence[int], limit: int) -> list[int]:
        drafted_in_step.append(id(self))
        return draft(self, tokens, limit)

    monkeypatch.setattr(PromptLookup, "draft", counted)
    model = echo_model(text, sequence_slots=3)
    per_token = model.runner.limits.kv_bytes_per_token
    exact = Sampling(temperature=0)
    tokens = len(Submitted(Engine(model), model, text).state.prompt) + len(text) + 1
    for answers, budget in ((2, 2 * tokens), (3, 2 * tokens + 40)):
        engine = Engine(model, kv_budget_bytes=budget * per_token)
        asked = [Submitted(engine, model, text, sampling=exact, tenant=str(number)) for number in range(answers)]
        while not engine.idle:
            drafted_in_step.clear()
            engine.step()
            assert len(drafted_in_step) == len(set(drafted_in_step))
            assert engine.stats.kv_bytes <= engine.stats.kv_budget_bytes
        assert [one.text() for one in asked] == [text] * answers
        assert sum(one.finish.usage.accepted_tokens for one in asked) > 20
        # Two answers fit to the last token: drafts at the end are shortened, and take no memory from the other.
        assert (engine.stats.preempted > 0) == (answers > 2)
        for slot in range(3):
            model.runner.truncate(slot, 0)
