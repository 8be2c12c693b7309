from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel
from edgekit.generation.types import ChatRequest, Delta, Event, Failure, Finished, Message
from tests.generation.tiny import EchoRunner, echo_model


def _ask(content: str = "Hello", **fields: object) -> ChatRequest:
    return ChatRequest("r", (Message("user", content),), **fields)  # type: ignore[arg-type]


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def _runner(model: TextModel) -> EchoRunner:
    assert isinstance(model.runner, EchoRunner)
    return model.runner


@given(
    answer=st.text(max_size=20),
    prompt=st.text(max_size=60),
    max_chunk=st.integers(1, 40),
    max_tokens=st.none() | st.integers(1, 30),
)
def test_the_answer_is_complete_whatever_the_chunks(
    answer: str, prompt: str, max_chunk: int, max_tokens: int | None
) -> None:
    model = echo_model(answer, max_chunk=max_chunk)
    events = list(generate(model, _ask(prompt, max_tokens=max_tokens)))
    *deltas, finish = events
    assert isinstance(finish, Finished)
    assert [event.seq for event in deltas if isinstance(event, Delta)] == list(range(len(deltas)))
    tokens = [*model.tokenizer.encode(answer, obey_special=False), 0]
    if max_tokens is None or max_tokens >= len(tokens):
        assert (finish.reason, finish.usage.completion_tokens) == ("stop", len(tokens))
        assert _text(events) == answer
    else:
        assert (finish.reason, finish.usage.completion_tokens) == ("length", max_tokens)
        assert _text(events) == model.tokenizer.decode(tokens[:max_tokens])
    assert finish.usage.prompt_tokens == len(model.prompt(_ask(prompt)).tokens)


@pytest.mark.parametrize(
    ("stop", "expected", "reason"),
    [
        (("capital",), "Paris is the ", "stop"),
        (("Paris",), "", "stop"),
        (("France.",), "Paris is the capital of ", "stop"),
        (("France. And",), "Paris is the capital of France.", "stop"),
        (("London",), "Paris is the capital of France.", "stop"),
        (("of", "the"), "Paris is ", "stop"),
    ],
)
def test_stop_strings_end_the_answer_and_kept_back_text_is_not_lost(
    stop: tuple[str, ...], expected: str, reason: str
) -> None:
    events = list(generate(echo_model(), _ask(stop=stop)))
    assert _text(events) == expected
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == reason


def test_the_answer_ends_with_the_context() -> None:
    model = echo_model("x" * 500, context_length=100)
    events = list(generate(model, _ask()))
    assert isinstance(events[-1], Finished)
    usage = events[-1].usage
    assert (events[-1].reason, usage.total_tokens) == ("length", 100)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers_before_any_work() -> None:
    model = echo_model(context_length=100)
    (event,) = generate(model, _ask("x" * 200))
    assert isinstance(event, Failure)
    assert event.error.code == "context_length_exceeded"
    assert "100" in event.error.message
    assert str(200 + len("user\n\nassistant\n") + 3) in event.error.message
    assert _runner(model).steps == 0


def test_a_prompt_that_leaves_room_for_one_token_gets_one() -> None:
    model = echo_model()
    length = len(model.prompt(_ask()).tokens)
    events = list(generate(echo_model(context_length=length + 1), _ask()))
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].usage.completion_tokens, _text(events)) == ("length", 1, "P")


def test_leaving_between_prefill_chunks_saves_the_rest_of_the_prompt() -> None:
    def interrupt(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    model = echo_model(max_chunk=8, before_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generate(model, _ask("x" * 400)))
    assert (_runner(model).steps, model.runner.length(0)) == (3, 16)


def test_a_deadline_that_passes_while_answering_is_a_failure() -> None:
    events = list(generate(echo_model(before_step=lambda _: time.sleep(0.01)), _ask(deadline_s=0.1)))
    assert isinstance(events[-1], Failure)
    assert events[-1].error.code == "deadline_exceeded"


def test_whatever_fails_in_a_step_becomes_the_failure_and_frees_the_slot() -> None:
    def fail(step: int) -> None:
        if step == 5:
            raise MemoryError("no more")

    model = echo_model(before_step=fail)
    events = list(generate(model, _ask()))
    assert isinstance(events[-1], Failure)
    assert (events[-1].error.code, type(events[-1].error)) == ("internal_error", EdgekitError)
    assert "MemoryError: no more" in events[-1].error.message
    assert model.runner.length(0) == 0


def test_ctrl_c_and_leaving_early_leave_the_model_ready() -> None:
    def interrupt(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    model = echo_model(before_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generate(model, _ask()))
    for event in generate(model, _ask()):
        assert isinstance(event, Delta)
        break
    assert _text(list(generate(model, _ask()))) == "Paris is the capital of France."


def test_a_template_that_refuses_the_messages_is_a_failure() -> None:
    model = echo_model()
    object.__setattr__(model, "template", ChatTemplate("{{ raise_exception('no') }}"))
    (event,) = generate(model, _ask())
    assert isinstance(event, Failure)
    assert isinstance(event.error, RequestError)
