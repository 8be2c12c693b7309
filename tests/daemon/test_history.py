"""An answer of any dialect, complete or streamed, may be sent back as history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.daemon.api import CollectedReply, parse_chat
from edgekit.daemon.api.ollama import parse_ollama_chat
from edgekit.daemon.http.chat import ChatReply
from edgekit.daemon.http.endpoint import Reply, RequestContext
from edgekit.daemon.http.ollama import chat_dialect
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.coalesce import DeltaBuffer
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.model import TextModel
from edgekit.generation.prepared import PreparedRequest
from edgekit.generation.tools import ToolFormat
from edgekit.generation.types import ChatRequest, Delta, Event, Finished, Message, ToolCallDelta
from tests.daemon.http.conftest import MODEL
from tests.daemon.mqtt.scripted import ScriptedWorker
from tests.generation.tiny import echo_model
from tests.generation.tools.test_parser import FORMATS, QWEN3, call

ASK = {"role": "user", "content": "What is the weather?"}
FUNCTIONS = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
# Reads every field that templates read, and fails on what is undefined or of another type.
TEMPLATE = (
    "{% for m in messages %}{{ m.role + m.content }}"
    "{% if m.reasoning_content is string %}{{ '<think>' + m.reasoning_content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.id + call.function.name + (call.function.arguments | tojson) }}"
    "{% for name, value in call.function.arguments.items() %}{{ name + (value | tojson) }}{% endfor %}"
    "{% endfor %}{% endfor %}"
)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_ARGUMENTS = st.dictionaries(st.text(max_size=5), _VALUES, max_size=3).map(json.dumps)


@st.composite
def _outputs(draw: st.DrawFn, format_: ToolFormat) -> str:
    """What a model may write: reasoning, text, calls; cut off anywhere."""
    written = ""
    if format_ is QWEN3 and draw(st.booleans()):
        written += f"<think>\n{draw(st.text(max_size=9))}</think>\n\n"
    written += draw(st.text(max_size=9))
    for arguments in draw(st.lists(_ARGUMENTS | st.just('{"far": 1e999}'), max_size=2)):
        written += ("\n" if written else "") + call(format_, draw(st.sampled_from(["weather", "now"])), arguments)
    return written[: draw(st.integers(0, len(written)))] if draw(st.booleans()) else written


def _events(format_: ToolFormat, request: ChatRequest, written: str) -> list[Event]:
    """The events of an answer, as the engine sends them."""
    events: list[Event] = []
    prepared = PreparedRequest(request, prompt=[1], tool_format=format_)
    state = RequestState(prepared, events.append, submitted=0.0)
    parser = format_.parser(format_.new_id, request.tools, enforced=True)
    for char in written:
        state.send(0, parser.push(char))
    state.send(0, parser.finish())
    state.finish("length")
    return events


def _http(reply: Reply, events: Sequence[Event]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The full reply, and the objects of the streamed one."""
    collected, streamed = CollectedReply(), reply.start()
    for event in events:
        if isinstance(event, Delta | ToolCallDelta):
            collected.add(event)
            streamed += reply.delta(event)
        elif isinstance(event, Finished):
            streamed += reply.finish(event)
    assert isinstance(events[-1], Finished)
    full = json.loads(json.dumps(reply.full(collected, events[-1]), allow_nan=False))
    lines = [line.removeprefix("data: ") for line in streamed.decode().split("\n")]
    return full, [json.loads(line) for line in lines if line not in ("", "[DONE]")]


def _assembled(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's deltas as a message, put together as simple clients do: strings joined, calls by their index."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for part in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append(part)
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


_CONTEXT = RequestContext("r", "c", MODEL, ScriptedWorker())  # type: ignore[arg-type]  # no dialect of chats uses it


def _openai(format_: ToolFormat, written: str) -> list[dict[str, Any]]:
    body = json.dumps({"messages": [ASK], "tools": FUNCTIONS, "stream": True}).encode()
    reply = ChatReply(body, _CONTEXT)
    full, chunks = _http(reply, _events(format_, reply.request, written))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [full["choices"][0]["message"], _assembled(deltas)]


def _ollama(format_: ToolFormat, written: str) -> list[dict[str, Any]]:
    body = json.dumps({"model": "tiny", "messages": [ASK], "tools": FUNCTIONS}).encode()
    reply: Any = chat_dialect(body, _CONTEXT)
    full, chunks = _http(reply, _events(format_, reply.request, written))
    message: dict[str, Any] = {"role": "assistant", "content": "", "thinking": ""}
    for chunk in chunks:
        message["content"] += chunk["message"]["content"]
        message["thinking"] += chunk["message"].get("thinking", "")
        message.setdefault("tool_calls", []).extend(chunk["message"].get("tool_calls", ()))
    return [full["message"], message]


def _mqtt(format_: ToolFormat, written: str) -> list[dict[str, Any]]:
    request, _ = parse_chat({"messages": [ASK], "tools": FUNCTIONS}, request_id="r")
    events = _events(format_, request, written)
    collected, pending = CollectedReply(), DeltaBuffer()
    for event in events:
        if isinstance(event, Delta | ToolCallDelta):
            collected.add(event)
            pending.add(event)
    deltas: list[dict[str, Any]] = []
    while pending:
        for batch in pending.take(16):
            delta = json.loads(messages.encode(messages.delta("r", 1, len(deltas), batch)))
            deltas.append({**delta, "content": delta["text"]})
    assert isinstance(events[-1], Finished)
    final = json.loads(messages.encode(messages.final("r", 1, len(deltas), collected, events[-1], model="tiny")))
    return [final["message"], _assembled(deltas)]


def _model() -> TextModel:
    return replace(echo_model(context_length=1 << 20), template=ChatTemplate(TEMPLATE), tool_format=QWEN3)


MODEL_READING = _model()


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_an_answer_contains_may_be_sent_back(format_: ToolFormat, data: st.DataObject) -> None:
    written = data.draw(_outputs(format_))
    for answer in (_openai, _ollama, _mqtt):
        for message in answer(format_, written):
            results = [
                {"role": "tool", "tool_call_id": item["id"], "content": "sunny"}
                for item in message.get("tool_calls", ())
            ]
            body = {"model": "tiny", "messages": [ASK, message, *results, ASK], "tools": FUNCTIONS}
            if answer is _ollama:
                encoded = json.dumps(body).encode()
                request = parse_ollama_chat(encoded, request_id="r", client="c", context_length=2048).request
                assert request is not None
            else:
                request = parse_chat(body, request_id="r")[0]
            sent = request.messages[1]
            assert sent.content == (message["content"] or "")
            assert sent.reasoning == (message.get("reasoning_content") or message.get("thinking") or "")
            assert [item.name for item in sent.tool_calls] == [
                item["function"]["name"] for item in message.get("tool_calls", ())
            ]
            MODEL_READING.prompt(request)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", "{}"),
        ("{", "{}"),
        ('{"city": "Par', '{"city": "Par"}'),
        ('{"city": "Paris", "da', '{"city": "Paris"}'),
        ('{"city": "Paris", "days":', '{"city": "Paris"}'),
        ('{"at": [1, {"b": tr', '{"at": [1, {}]}'),
        ('{"city": "Par\\u00', '{"city": "Par"}'),
        ('{"far": 1e999, "city": "P', '{"far": 1.7976931348623157e+308, "city": "P"}'),
    ],
)
def test_arguments_that_were_cut_off_are_closed_where_they_end(arguments: str, read: str) -> None:
    cut = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}
    request, _ = parse_chat({"messages": [ASK, cut, ASK]}, request_id="r")
    assert request.messages[1].tool_calls[0].arguments == read


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({"role": "assistant", "content": None}, "", ""),
        ({"role": "assistant"}, "", ""),
        ({"role": "assistant", "content": "Hi", "reasoning": "Hm"}, "Hi", "Hm"),
        ({"role": "assistant", "content": "Hi", "reasoning": "Hm", "reasoning_content": "Hm"}, "Hi", "Hm"),
        ({"role": "assistant", "content": None, "refusal": "No."}, "No.", ""),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, "No.", ""),
        ({"role": "assistant", "content": "Hi", "refusal": None, "audio": None, "function_call": None}, "Hi", ""),
        ({"role": "assistant", "content": "Hi", "parsed": {"a": 1}, "annotations": [], "id": "m"}, "Hi", ""),
        ({"role": "tool", "content": None}, "", ""),
    ],
)
def test_other_servers_answers_may_be_sent_back_too(message: dict[str, Any], content: str, reasoning: str) -> None:
    read = parse_chat({"messages": [ASK, message, ASK]}, request_id="r")[0].messages[1]
    assert (read.content, read.reasoning) == (content, reasoning)


@pytest.mark.parametrize("name", ["thinking", "reasoning_content", "reasoning"])
def test_reasoning_may_come_from_another_api(name: str) -> None:
    messages = [ASK, {"role": "assistant", "content": "Hi", name: "Hm"}, ASK]
    assert parse_chat({"messages": messages}, request_id="r")[0].messages[1].reasoning == "Hm"
    body = json.dumps({"model": "m", "messages": messages}).encode()
    call = parse_ollama_chat(body, request_id="r", client="c", context_length=64)
    assert call.request is not None
    assert call.request.messages[1].reasoning == "Hm"


def test_the_template_sees_the_reasoning_of_an_earlier_answer() -> None:
    request = ChatRequest("r", messages=(Message("user", "?"), Message("assistant", "Hi", reasoning="Hm")))
    ids = MODEL_READING.prompt(request).tokens
    assert MODEL_READING.tokenizer.decode(ids) == "user?assistantHi<think>Hm"
