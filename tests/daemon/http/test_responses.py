"""The Responses API through OpenAI's own client, over the real engine with a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from edgekit.config import HttpConfig
from tests.scripted import scripted_model, serving, tool_call

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
ANSWER = "<think>\nEasy.\n</think>\n\nParis is the capital."


class City(BaseModel):
    city: str


def script(prompt: str) -> str:
    """What the model writes: a call if it has a tool and no result, JSON if asked for, else it tells its prompt."""
    last = prompt.rpartition("<|im_start|>user\n")[2]
    if "weather" in prompt and "<|im_start|>tool" not in prompt:
        return tool_call("weather", '{"city": "Paris"}')
    if "JSON" in last:
        return '{"city":"Paris"}'
    if "think" in last:
        return ANSWER
    if "prompt" in last:
        return prompt
    return "It is sunny." if "<|im_start|>tool" in prompt else "Paris."


@dataclass
class Running:
    url: str
    client: openai.OpenAI
    http: httpx.Client

    def create(self, **fields: Any) -> Any:
        return self.client.responses.create(model="scripted", **fields)

    def events(self, **fields: Any) -> list[Any]:
        return list(self.create(stream=True, **fields))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with (
        serving(scripted_model(script)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield Running(server.url, client, http)


def test_a_question_is_answered_and_its_settings_are_repeated(running: Running) -> None:
    reply = running.create(input="Capital?", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, user="u")
    assert (reply.output_text, reply.status, reply.object, reply.id[:5]) == ("Paris.", "completed", "response", "resp_")
    assert (reply.instructions, reply.metadata, reply.temperature, reply.user) == ("Be brief.", {"a": "b"}, 0.5, "u")
    assert (reply.error, reply.incomplete_details, reply.previous_response_id) == (None, None, None)
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens > 0
    assert reply.usage.output_tokens_details.reasoning_tokens == 0


def types(events: list[Any]) -> list[str]:
    """The events' types without `response.`, runs of deltas as one."""
    found: list[str] = []
    for event in events:
        name = event.type.removeprefix("response.")
        if not (name.endswith(".delta") and found and found[-1] == name):
            found.append(name)
    return found


def bare(items: list[Any]) -> list[dict[str, Any]]:
    """Items without their random ids."""
    return [{**item.to_dict(), "id": "", "call_id": ""} for item in items]


BEGIN = ["created", "in_progress"]
TEXT = [
    *("output_item.added", "content_part.added", "output_text.delta"),
    *("output_text.done", "content_part.done", "output_item.done"),
]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


def thought(name: str, part: str) -> list[str]:
    return ["output_item.added", f"{part}.added", f"{name}.delta", f"{name}.done", f"{part}.done", "output_item.done"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input": "Capital?"}, TEXT),
        ({"input": "Weather?", "tools": [WEATHER]}, CALL),
        ({"input": "Please think"}, [*thought("reasoning_text", "content_part"), *TEXT]),
        (
            {"input": "Please think", "reasoning": {"effort": "low", "summary": "auto"}},
            [*thought("reasoning_summary_text", "reasoning_summary_part"), *TEXT],
        ),
    ],
    ids=["text", "call", "reasoning", "summary"],
)
def test_events_come_in_the_official_order_and_build_the_response(
    running: Running, fields: dict[str, Any], expected: list[str]
) -> None:
    events = running.events(**fields)
    assert types(events) == [*BEGIN, *expected, "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in final.output]
    assert [event.output_index for event in events if event.type == "response.output_item.added"] == [*range(len(done))]
    for event in events:
        if hasattr(event, "item_id"):
            assert event.item_id == done[event.output_index].id
    # Unstreamed it is the same.
    whole = running.create(**fields)
    assert bare(whole.output) == bare(final.output)


def test_openais_accumulator_follows_the_stream(running: Running) -> None:
    with running.client.responses.stream(model="scripted", input="Weather?", tools=[WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots[-1] == '{"city": "Paris"}'
    assert (final.output[0].type, final.output[0].name) == ("function_call", "weather")  # type: ignore[union-attr]
    with running.client.responses.stream(model="scripted", input="As JSON", text_format=City) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_parsed == City(city="Paris")
    assert texts[-1] == '{"city":"Paris"}'


def test_a_schema_is_enforced_and_parsed(running: Running) -> None:
    reply = running.client.responses.parse(model="scripted", input="As JSON", text_format=City)
    assert reply.output_parsed == City(city="Paris")
    # The script's answer does not fit this one, and the schema wins.
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"const": "Rome"}}, "verbosity": "low"}
    assert running.create(input="As JSON", text=text).output_text == '"Rome"'


def test_a_conversation_goes_on_from_a_stored_response(running: Running) -> None:
    first = running.create(input="Weather?", tools=[WEATHER], instructions="First.")
    call = first.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = running.create(input=[result], tools=[WEATHER], previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == ("It is sunny.", first.id)
    third = running.create(input="Your prompt?", previous_response_id=second.id, instructions="Third.")
    told = third.output_text.replace("<|im_end|>", "")
    # All turns, with this request's instructions and not the earlier ones.
    assert [part.partition("\n")[0] for part in told.split("<|im_start|>")[1:]] == [
        *("system", "user", "assistant", "tool", "assistant", "user", "assistant")
    ]
    assert ("Third." in told, "First." in told, "sunny" in told) == (True, False, True)
    listed = running.client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    page = running.http.get(f"/v1/responses/{second.id}/input_items?limit=2&order=asc&after={listed[0].id}").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([item.id for item in listed[1:]], False)


def test_the_same_history_sent_back_makes_the_same_prompt(running: Running) -> None:
    first = running.create(input="Please think", include=["reasoning.encrypted_content"], store=False)
    assert [item.type for item in first.output] == ["reasoning", "message"]
    whole = [item.to_dict() for item in first.output]
    sealed = [{**whole[0], "content": [], "summary": []}, whole[1]]
    question = {"role": "user", "content": [{"type": "input_text", "text": "Please think"}]}
    asked = {"role": "user", "content": "Your prompt?"}
    prompts = {running.create(input=[question, *answer, asked], store=False).output_text for answer in (whole, sealed)}
    assert len(prompts) == 1
    assert "Easy." in prompts.pop()
    foreign = [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}, whole[1]]
    assert "Easy." not in running.create(input=[question, *foreign, asked]).output_text


def test_stored_items_can_be_referred_to(running: Running) -> None:
    first = running.create(input="Capital?")
    given = [{"role": "user", "content": "A"}, {"type": "item_reference", "id": first.output[0].id}]
    text = running.create(input=[*given, {"role": "user", "content": "Your prompt?"}]).output_text
    assert "<|im_start|>assistant\nParis.<|im_end|>" in text
    with pytest.raises(openai.NotFoundError) as caught:
        running.create(input=[{"id": "msg_gone"}])
    assert caught.value.param == "input[0].id"


def test_stored_responses_are_returned_and_deleted(running: Running) -> None:
    made = running.create(input="Capital?")
    assert running.client.responses.retrieve(made.id).to_dict() == made.to_dict()
    with pytest.raises(openai.BadRequestError, match="complete"):
        running.client.responses.cancel(made.id)
    running.client.responses.delete(made.id)
    for ask in (
        lambda: running.client.responses.retrieve(made.id),
        lambda: running.client.responses.delete(made.id),
        lambda: running.client.responses.cancel(made.id),
        lambda: running.client.responses.input_items.list(made.id),
        lambda: running.create(input="More", previous_response_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()


def test_a_response_that_is_not_to_be_stored_is_not(running: Running) -> None:
    made = running.create(input="Capital?", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        running.client.responses.retrieve(made.id)


def test_a_streamed_response_is_stored_before_its_last_event(running: Running) -> None:
    last = running.events(input="Capital?")[-1].response
    assert running.client.responses.retrieve(last.id).to_dict() == last.to_dict()


def test_without_a_store_the_daemon_says_so() -> None:
    with serving(scripted_model(script), HttpConfig(port=0, stored_responses=0)) as server:
        made = httpx.post(f"{server.url}/v1/responses", json={"input": "Capital?", "store": True}).json()
        reply = httpx.post(f"{server.url}/v1/responses", json={"input": "x", "previous_response_id": made["id"]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert "stores none" in reply.json()["error"]["message"]
    assert made["store"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(running: Running, *, stream: bool) -> None:
    fields: Any = {"input": "Capital?", "max_output_tokens": 3}
    reply = running.events(**fields)[-1].response if stream else running.create(**fields)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (reply.output_text, reply.output[0].status, reply.max_output_tokens) == ("Par", "incomplete", 3)


def test_a_call_that_is_cut_off_is_incomplete(running: Running) -> None:
    fields: Any = {"input": "Weather?", "tools": [WEATHER], "max_output_tokens": 58}
    items = [running.create(**fields).output[0], running.events(**fields)[-1].response.output[0]]
    for item in items:
        assert (item.type, item.status) == ("function_call", "incomplete")
        assert '{"city": "Paris"}'.startswith(item.arguments)


def test_log_probabilities_are_with_the_text(running: Running) -> None:
    reply = running.create(input="Capital?", include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = reply.output[0].content[0].logprobs
    assert "".join(one.token for one in logprobs) == "Paris."
    assert [len(one.top_logprobs) for one in logprobs] == [2] * 6
    events = running.events(input="Capital?", top_logprobs=1)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(one.token for event in deltas for one in event.logprobs) == "Paris."


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("none", ["message"]),
        ("required", ["function_call"]),
        ({"type": "function", "name": "weather"}, ["function_call"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            ["function_call"],
        ),
    ],
)
def test_the_choice_of_a_tool_is_obeyed(running: Running, choice: Any, kinds: list[str]) -> None:
    reply = running.create(input="Weather?", tools=[WEATHER], tool_choice=choice)
    assert [item.type for item in reply.output] == kinds


def test_reasoning_tokens_are_counted(running: Running) -> None:
    reply = running.create(input="Please think")
    # A byte is a token; white space after the closing tag is not reasoning.
    assert reply.usage.output_tokens_details.reasoning_tokens == len("<think>\nEasy.\n</think>") - len("<think>") + 1


def test_effort_sets_the_templates_variables(running: Running) -> None:
    for effort, thinks in (("none", False), ("minimal", False), ("low", True), ("high", True)):
        text = running.create(input="Your prompt?", reasoning={"effort": effort}).output_text
        assert (f"enable_thinking={thinks}" in text, f"reasoning_effort={effort}" in text) == (True, True)
    assert "enable_thinking" not in running.create(input="Your prompt?").output_text


def test_input_tokens_are_counted_as_they_are_used(running: Running) -> None:
    fields = {"input": "Capital?", "instructions": "Be brief.", "tools": [WEATHER]}
    counted = running.http.post("/v1/responses/input_tokens", json=fields).json()
    assert counted["input_tokens"] == running.create(**fields).usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice.type", "unsupported_parameter"),
        ({"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_request"),
        ({"input": "x", "background": True}, "background", "unsupported_parameter"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_request"),
        ({}, "input", "invalid_request"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "input[0].content",
            "unsupported_parameter",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
            "invalid_request",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            "input[0].arguments",
            "invalid_request",
        ),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", None),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "invalid_request"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs", "invalid_request"),
        ({"input": "x", "reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_request"),
        ({"input": "x", "temprature": 1}, "temprature", "unsupported_parameter"),
        ({"input": "x", "n": 2}, "n", "unsupported_parameter"),
        ({"input": "x", "model": "other"}, "model", "model_not_found"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_what_is_not_supported_is_refused_by_name(
    running: Running, fields: dict[str, Any], param: str, code: str | None
) -> None:
    for stream in (False, True):
        reply = running.http.post("/v1/responses", json={**fields, "stream": stream})
        error = reply.json()["error"]
        assert (reply.status_code in {400, 404}, error["param"]) == (True, param), error
        assert code in {None, error["code"]}


def test_a_failure_is_the_last_event() -> None:
    def fail(step: int) -> None:
        if step > 3:
            raise RuntimeError("the runner broke")

    with (
        serving(scripted_model(script, before_step=fail)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        events = list(client.responses.create(model="scripted", input="Capital?", stream=True))
        assert events[-1].type == "response.failed"
        assert events[-1].response.status == "failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.code == "server_error"
        with pytest.raises(openai.APIStatusError):
            client.responses.create(model="scripted", input="Capital?")
