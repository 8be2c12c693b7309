"""Several prompts in one completion request, and prompts of token ids: a real model, through OpenAI's client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.batch import Batch
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.errors import RequestError, UnavailableError
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Event, Failure, Finished
from edgekit.generation.usage import Timings, Usage
from tests.daemon.mqtt.conftest import eventually
from tests.generation.bundles import tiny_bundle

TEXTS = ["the capital of France", "even numbers in a list", "user assistant"]


class Running:
    def __init__(self, model: TextModel, client: openai.OpenAI, worker: EngineWorker) -> None:
        self.model, self.client, self.worker = model, client, worker

    def complete(self, prompt: Any, **fields: Any) -> Any:
        return self.client.completions.create(model="tiny", prompt=prompt, **fields)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = load_model(tiny_bundle(tmp_path_factory.mktemp("tiny"), "onnx"), threads=1, parallel=2)
    worker = EngineWorker(model, max_queue=16)
    server = HttpServer(HttpConfig(port=0), worker, model.info, Metrics())
    server.start()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield Running(model, client, worker)
    worker.stop()
    server.stop()


def shown(choice: Any) -> tuple[Any, ...]:
    table = choice.logprobs
    return choice.text, choice.finish_reason, table and (table.tokens, table.token_logprobs, table.top_logprobs)


def test_token_ids_are_the_text_that_they_encode(running: Running) -> None:
    for text in TEXTS:
        ids = running.model.tokenizer.encode_text(text)
        fields: Any = {"max_tokens": 5, "logprobs": 2, "echo": True, "seed": 1}
        one, other = running.complete(text, **fields), running.complete(ids, **fields)
        assert shown(one.choices[0]) == shown(other.choices[0])
        assert one.usage.prompt_tokens == other.usage.prompt_tokens == len(ids)


def test_a_batch_is_its_prompts_one_by_one(running: Running) -> None:
    ids = [running.model.tokenizer.encode_text(text) for text in TEXTS]
    fields: Any = {"max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 5, "logprobs": 1, "echo": True}
    alone = [running.complete(prompt, **fields) for prompt in ids]
    for batch in (TEXTS, ids):
        reply = running.complete(batch, **fields)
        assert [choice.index for choice in reply.choices] == list(range(6))
        assert [*map(shown, reply.choices)] == [shown(choice) for one in alone for choice in one.choices]
        for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert getattr(reply.usage, count) == sum(getattr(one.usage, count) for one in alone)


def test_a_streamed_batch_has_the_indices_of_its_prompts(running: Running) -> None:
    fields: Any = {"max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 5}
    whole = running.complete(TEXTS, **fields)
    texts, ends, usage = [""] * 6, [""] * 6, None
    for chunk in running.complete(TEXTS, **fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert not ends[choice.index], "text after the end"
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ""
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)  # type: ignore[union-attr]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_batch_of_token_ids_is_scored_as_lm_eval_reads_it(running: Running, max_tokens: int) -> None:
    contexts = [running.model.tokenizer.encode_text(text) for text in TEXTS]
    eos = min(running.model.eos_token_ids)
    batch = [[*context, *context[:2]] for context in contexts]
    # A bias makes the end the next token: it has a row too, which lm-eval drops by its place.
    bias = {"logit_bias": {str(eos): 100}} if max_tokens else {}
    reply = running.complete(batch, max_tokens=max_tokens, logprobs=1, echo=True, temperature=0, seed=1234, **bias)
    for context, prompt, choice in zip(contexts, batch, reply.choices, strict=True):
        table = choice.logprobs
        assert len(table.tokens) == len(table.token_logprobs) == len(table.top_logprobs) == len(prompt) + max_tokens
        assert table.token_logprobs[0] is table.top_logprobs[0] is None
        scored = slice(len(context), len(table.tokens) - max_tokens)
        assert len(table.token_logprobs[scored]) == 2
        for value, top in zip(table.token_logprobs[scored], table.top_logprobs[scored], strict=True):
            assert value <= max(top.values()) <= 0


def test_special_tokens_are_used_as_given(running: Running) -> None:
    tokenizer = running.model.tokenizer
    start = tokenizer.special_tokens["<|im_start|>"]
    ids = [start, *tokenizer.encode("user")]
    reply = running.complete(ids, max_tokens=1, echo=True)
    assert (reply.usage.prompt_tokens, reply.choices[0].text[:16]) == (len(ids), "<|im_start|>user")


def test_the_best_of_several_choices_is_returned(running: Running) -> None:
    fields: Any = {"max_tokens": 6, "temperature": 1.5, "seed": 5}
    every = running.complete(TEXTS[0], **fields, n=6, logprobs=0).choices
    means = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens) for choice in every]
    order = sorted(range(6), key=lambda index: -means[index])
    best = running.complete(TEXTS[0], **fields, n=2, best_of=6)
    assert [choice.text for choice in best.choices] == [every[index].text for index in order[:2]]
    assert [(choice.index, choice.logprobs) for choice in best.choices] == [(0, None), (1, None)]
    assert best.usage.completion_tokens == running.complete(TEXTS[0], **fields, n=6).usage.completion_tokens
    # Of each prompt.
    both = running.complete([TEXTS[1], TEXTS[0]], **fields, best_of=6)
    assert [choice.text for choice in both.choices][1] == best.choices[0].text


def test_a_bad_prompt_fails_the_batch_and_nothing_stays_behind(running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        running.complete([TEXTS[0], [100_000]], max_tokens=200)
    assert "100000" in caught.value.message
    assert eventually(lambda: running.worker.queue_length() == 0)


def test_a_batch_that_has_no_place_is_refused_and_leaves_none_behind(running: Running) -> None:
    busy = running.complete(["a"] * 12, max_tokens=200, logit_bias={"2": -100}, stream=True)
    next(iter(busy))
    with pytest.raises(openai.RateLimitError, match="fewer prompts"):
        running.complete(["a"] * 18, max_tokens=200)
    busy.close()
    assert eventually(lambda: running.worker.queue_length() == 0)


def test_a_batch_larger_than_the_queue_is_not_told_to_ask_again(running: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 18 prompts at a time") as caught:
        running.complete(["a"] * 100, max_tokens=200)
    assert (caught.value.code, "retry-after" in caught.value.response.headers) == ("too_many_prompts", False)
    assert eventually(lambda: running.worker.queue_length() == 0)


def test_closing_the_stream_cancels_every_prompt(running: Running) -> None:
    stream = running.complete(TEXTS, max_tokens=240, logit_bias={"2": -100}, stream=True)
    next(iter(stream))
    stream.close()
    assert eventually(lambda: running.worker.queue_length() == 0)


# The batch itself, event by event.


class Submitted:
    def __init__(self) -> None:
        self.receivers: list[Any] = []
        self.cancelled: list[int] = []

    def __call__(self, _: ChatRequest, on_event: Any) -> Any:
        number = len(self.receivers)
        self.receivers.append(on_event)
        submitted = self

        class State:
            def cancel(self) -> None:
                submitted.cancelled.append(number)

        return State()


def finished(reason: Any = "stop", n: int = 1) -> Finished:
    return Finished(reason, Usage(3, 2), Timings(0.1, 0.2, 0.3), reasons=(reason,) * n)


def requests(count: int, n: int = 1) -> list[ChatRequest]:
    return [ChatRequest("r", prompt="x", n=n) for _ in range(count)]


def test_choices_of_a_batch_are_numbered_through_and_end_once() -> None:
    events: list[Event] = []
    submitted = Submitted()
    Batch(requests(2, 2), events.append).submit(submitted, 64)
    first, second = submitted.receivers
    second(Delta(0, "c", 1))
    first(Delta(0, "a", 0))
    second(ChoiceFinished(1, "length"))
    second(Finished("stop", Usage(3, 2), Timings(0.1, 0.2, 0.3), reasons=("stop", "length")))
    first(Delta(1, "b", 1))
    first(finished("length", 2))
    assert [(e.seq, e.index, e.text) for e in events if isinstance(e, Delta)] == [(0, 3, "c"), (1, 0, "a"), (2, 1, "b")]
    assert [event for event in events if isinstance(event, ChoiceFinished)] == [
        ChoiceFinished(3, "length"),
        ChoiceFinished(2, "stop"),
    ]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.reasons == ("length", "length", "stop", "length")
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (6, 4)


def test_a_failure_is_the_batchs_last_event_and_cancels_the_others() -> None:
    events: list[Event] = []
    submitted = Submitted()
    Batch(requests(3), events.append).submit(submitted, 64)
    failure = Failure(RequestError("late", code="deadline_exceeded"))
    submitted.receivers[1](failure)
    submitted.receivers[0](Delta(0, "a"))
    submitted.receivers[2](finished("cancelled"))
    assert events == [failure]
    assert submitted.cancelled == [0, 1, 2]


def test_requests_submitted_after_a_cancellation_are_cancelled_too() -> None:
    batch = Batch(requests(2), lambda _: None)
    submitted = Submitted()

    def submit(request: ChatRequest, on_event: Any) -> Any:
        state = submitted(request, on_event)
        batch.cancel()
        return state

    batch.submit(submit, 64)
    assert set(submitted.cancelled) == {0, 1}


def test_a_rejected_request_cancels_those_before_it() -> None:
    submitted = Submitted()

    def submit(request: ChatRequest, on_event: Any) -> Any:
        if submitted.receivers:
            raise UnavailableError("full", hint="ask again", code="overloaded", retry_after_s=3.0)
        return submitted(request, on_event)

    events: list[Event] = []
    with pytest.raises(UnavailableError) as caught:
        Batch(requests(2), events.append).submit(submit, 64)
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 3.0)
    submitted.receivers[0](finished("cancelled"))
    assert (submitted.cancelled, events) == ([0], [])
