"""Chats through OpenAI's own client, in front of a worker that plays a script."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from edgekit.generation.tools import find_reasoning
from edgekit.generation.types import Delta, ToolChoice
from tests.daemon.http.conftest import ASK, Played, Serve
from tests.daemon.mqtt.scripted import (
    ARGUMENTS,
    WORDS,
    Playing,
    answer_in_turn,
    answer_twice,
    call_tools,
    finish,
    tell_logprobs,
)
from tests.generation.tiny import echo_model

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "time", "description": "Of a zone."}},
]


def test_calls_come_with_ids_names_and_arguments(played: Played) -> None:
    played.worker.script = call_tools
    reply = played.openai.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS, tool_choice="required")
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert choice.message.tool_calls is not None
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]  # type: ignore[union-attr]
    assert calls == [("call_0", "function", "weather", ARGUMENTS[0]), ("call_1", "function", "time", ARGUMENTS[1])]
    request = played.worker.played[0].request
    assert [tool.name for tool in request.tools] == ["weather", "time"]
    assert (request.tools[0].parameters, request.tools[0].strict) == (SCHEMA, True)
    assert request.tool_choice == ToolChoice("required")


def test_an_answer_with_calls_can_be_sent_back_with_their_results(played: Played) -> None:
    played.worker.script = call_tools
    message = played.openai.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS).choices[0].message
    turns = [*HELLO, message, {"role": "tool", "tool_call_id": "call_0", "content": "sunny"}]
    played.openai.chat.completions.create(model="tiny", messages=turns, tools=TOOLS)
    messages = played.worker.played[1].request.messages
    assert [call.arguments for call in messages[1].tool_calls] == [*ARGUMENTS]
    assert (messages[2].role, messages[2].tool_call_id, messages[2].content) == ("tool", "call_0", "sunny")


def test_streamed_calls_join_to_the_full_ones(played: Played) -> None:
    played.worker.script = call_tools
    with played.openai.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [(event.name, event.arguments) for event in done] == [("weather", ARGUMENTS[0]), ("time", ARGUMENTS[1])]
    assert not message.content
    assert [call.id for call in message.tool_calls or ()] == ["call_0", "call_1"]


def test_only_the_first_delta_of_a_streamed_call_names_it(played: Played) -> None:
    played.worker.script = call_tools
    chunks = list(played.openai.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS, stream=True))
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", None)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    named = [(delta.index, delta.id, delta.function.name) for delta in deltas if delta.id and delta.function]
    assert named == [(0, "call_0", "weather"), (1, "call_1", "time")]
    assert all(delta.function and delta.function.name is None for delta in deltas if not delta.id)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_each_of_several_choices_has_its_own_text_and_finish_reason(played: Played) -> None:
    played.worker.script = answer_twice
    reply = played.openai.chat.completions.create(model="tiny", messages=HELLO, n=2)
    choices = [(choice.index, choice.message.content, choice.finish_reason) for choice in reply.choices]
    said = "".join(WORDS)
    assert choices == [(0, said, "stop"), (1, said.upper(), "length")]
    assert played.worker.played[0].request.n == 2


def test_streamed_choices_are_distinguished_by_their_index(played: Played) -> None:
    played.worker.script = answer_twice
    texts: dict[int, str] = defaultdict(str)
    ends = {}
    roles = []
    for chunk in played.openai.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.role:
                roles.append(choice.index)
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "".join(WORDS), 1: "".join(WORDS).upper()}
    assert (roles, ends) == ([0, 1], {0: "stop", 1: "length"})


def test_a_choice_that_finishes_early_has_its_last_chunk_while_the_other_continues(played: Played) -> None:
    played.worker.script = answer_in_turn
    ends = []
    options: Any = {"include_usage": True}
    ask: Any = {"model": "tiny", "messages": HELLO, "n": 2, "stream_options": options}
    for chunk in played.openai.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            if choice.finish_reason:
                assert not choice.delta.content
                # The other choice continues until it is cancelled.
                ends.append((choice.index, choice.finish_reason, played.worker.queue_length()))
                played.worker.played[0].cancel()
    assert ends[0] == (1, "length", 1)
    assert [end[:2] for end in ends[1:]] == [(0, "cancelled")]
    assert chunk.usage is not None


def test_each_choice_of_a_real_worker_finishes_before_the_next_one_begins(serve: Serve) -> None:
    served = serve(echo_model("Paris is the capital."))
    body = {**ASK, "n": 3, "stream": True, "max_tokens": 9}
    lines = served.http.post(CHAT, json=body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    # There is one sequence slot, so they are generated one after another.
    chunked = [(choice["index"], choice["finish_reason"]) for chunk in chunks[3:] for choice in chunk["choices"]]
    assert [index for index, _ in chunked] == sorted(index for index, _ in chunked)
    assert [(index, reason) for index, reason in chunked if reason] == [(0, "length"), (1, "length"), (2, "length")]
    assert ["timings" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_reasoning_is_reasoning_content_unless_requested_inline(serve: Serve) -> None:
    model = echo_model("<think>\nHm.</think>\n\nParis")
    served = serve(replace(model, reasoning=find_reasoning("</think>", {})))
    message = served.http.post(CHAT, json=ASK).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("\nHm.", "Paris")
    streamed: dict[str, str] = defaultdict(str)
    with served.openai() as client:
        for chunk in client.chat.completions.create(model="echo", messages=HELLO, stream=True):
            for name, text in chunk.choices[0].delta.to_dict().items():
                streamed[name] += str(text or "")
    assert streamed == {"role": "assistant", "content": "Paris", "reasoning_content": "\nHm."}
    inline = served.http.post(CHAT, json={**ASK, "reasoning_format": "none"}).json()["choices"][0]["message"]
    assert inline == {"role": "assistant", "content": "<think>\nHm.</think>\n\nParis", "refusal": None}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_token_by_token(played: Played, *, stream: bool) -> None:
    played.worker.script = tell_logprobs
    tokens: list[Any] = []
    ask: Any = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    if stream:
        for chunk in played.openai.chat.completions.create(**ask, stream=True):
            tokens += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    else:
        tokens = played.openai.chat.completions.create(**ask).choices[0].logprobs.content
    assert [token.logprob for token in tokens] == [-0.5, -1.0, 0.0]
    assert bytes(byte for token in tokens for byte in token.bytes or ()).decode() == "Hi 🗼"
    assert [(top.token, top.logprob) for top in tokens[0].top_logprobs] == [("Hi", -0.5), ("Ho", -1.5)]
    assert played.worker.played[0].request.logprobs == 2


def test_log_probabilities_are_null_unless_requested(played: Played) -> None:
    played.worker.script = tell_logprobs
    assert played.http.post(CHAT, json=ASK).json()["choices"][0]["logprobs"] is None
    assert '"logprobs":{' not in played.http.post(CHAT, json={**ASK, "stream": True}).text


class Place(BaseModel):
    """The response format."""

    city: str


def test_a_pydantic_model_is_the_schema_and_the_answer_is_read_into_it(played: Played) -> None:
    def obey(playing: Playing) -> None:
        playing.on_event(Delta(0, '{"city": "Paris"}'))
        playing.on_event(finish())

    played.worker.script = obey
    reply = played.openai.chat.completions.parse(
        model="tiny",
        messages=HELLO,
        response_format=Place,
        extra_body={"repeat_penalty": 1.1, "speculation": False},
    )
    assert reply.choices[0].message.parsed == Place(city="Paris")
    request = played.worker.played[0].request
    assert request.response_format is not None
    assert (request.response_format.kind, request.response_format.name) == ("json_schema", "Place")
    assert request.response_format.value["properties"]["city"]["type"] == "string"
    assert (request.sampling.repetition_penalty, request.speculation) == (1.1, False)


def test_usage_and_timings_count_cached_and_draft_tokens(played: Played) -> None:
    reply = played.openai.chat.completions.create(model="tiny", messages=HELLO)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 4
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.accepted_prediction_tokens == 2
    assert reply.usage.completion_tokens_details.rejected_prediction_tokens == 1
    timings = (reply.model_extra or {})["timings"]
    assert (timings["first_token_s"], timings["slowest_token_s"], timings["steps"]) == (0.75, 0.5, 5)
    assert (timings["drafted_tokens"], timings["accepted_tokens"], timings["kv_bytes"]) == (3, 2, 4096)


def test_a_full_reply_has_cost_headers_and_the_last_chunk_of_a_stream_has_timings(played: Played) -> None:
    headers = played.http.post(CHAT, json=ASK).headers
    assert headers["server-timing"] == "queue;dur=250.000, prefill;dur=500.000, decode;dur=1000.000"
    names = ["prompt-tokens", "cached-tokens", "completion-tokens", "drafted-tokens", "accepted-tokens", "kv-bytes"]
    names.append("left-out-messages")
    assert [headers[f"x-edgekit-{name}"] for name in names] == ["11", "4", "8", "3", "2", "4096", "6"]
    events = played.http.post(CHAT, json={**ASK, "stream": True, "n": 2}).text.strip().split("\n\n")
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["timings"]["cached_tokens"] == 4
    assert last["timings"]["left_out_messages"] == 6
    assert sum('"timings"' in event for event in events) == 1


def test_an_invalid_tool_choice_reaches_openais_client_as_param(played: Played) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        played.openai.chat.completions.create(
            model="tiny", messages=HELLO, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "x"}}
        )
    assert caught.value.param == "tool_choice"
    assert played.worker.played == []


def test_the_number_of_messages_left_out_of_a_long_chat_is_reported_in_either_dialect(serve: Serve) -> None:
    served = serve(echo_model("Hi", context_length=400))
    turns = [{"role": "user", "content": "x" * 60} for _ in range(8)]
    body = {"messages": [*turns, *HELLO], "max_tokens": 9, "truncation": "auto"}
    reply = served.http.post(CHAT, json=body)
    left_out = reply.json()["timings"]["left_out_messages"]
    assert 0 < left_out < len(turns)
    assert reply.headers["x-edgekit-left-out-messages"] == str(left_out)
    chat = {"model": "echo", "messages": body["messages"], "options": {"num_predict": 9}, "stream": False}
    assert served.http.post("/api/chat", json=chat).json()["left_out_messages"] == left_out
    short = {**chat, "messages": HELLO}
    assert "left_out_messages" not in served.http.post("/api/chat", json=short).json()
    assert served.http.post(CHAT, json={**body, "truncation": "disabled"}).status_code == 400
