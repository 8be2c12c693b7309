from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.wire import error_body, parse_chat, timings_body, usage_body
from edgekit.errors import RequestError, RunnerError
from edgekit.generation.request import Message, Timings, Usage

HELLO = [{"role": "user", "content": "Hello"}]


def _parse(**fields: object) -> RequestError | None:
    try:
        parse_chat(json.dumps({"messages": HELLO, **fields}).encode(), request_id="r")
    except RequestError as error:
        return error
    return None


def test_every_supported_parameter_arrives() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "developer", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi"}],
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -3,
        "stop": ["a", "b"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "deadline_s": 2.5,
    }
    request, options = parse_chat(body, request_id="r1", client="10.0.0.1")
    assert request.messages[0] == Message("system", "Be brief.")
    assert [message.role for message in request.messages] == ["system", "user", "assistant"]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        0,
        0.9,
        40,
        0.05,
        -3,
    )
    assert (request.max_tokens, request.stop, request.deadline_s) == (7, ("a", "b"), 2.5)
    assert (request.id, request.client) == ("r1", "10.0.0.1")
    assert (options.model, options.stream, options.include_usage) == ("m", True, True)


def test_text_parts_are_joined_and_one_stop_text_may_stand_alone() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request, options = parse_chat({"messages": [{"role": "user", "content": parts}], "stop": "x"}, request_id="r")
    assert request.messages == (Message("user", "a\nb"),)
    assert request.stop == ("x",)
    assert (options.model, options.stream) == (None, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "logit_bias": {}},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True},
        {"temperature": None, "stop": None, "stream_options": None, "tools": None, "model": None},
    ],
)
def test_parameters_that_change_nothing_are_accepted(fields: dict[str, object]) -> None:
    assert _parse(**fields) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("mirostat", 2),
    ],
)
def test_parameters_that_would_change_the_answer_are_refused_by_name(name: str, value: object) -> None:
    error = _parse(**{name: value})
    assert error is not None
    assert (error.code, error.param) == ("unsupported_parameter", name)


def test_a_misspelt_parameter_is_answered_with_the_right_one() -> None:
    error = _parse(temprature=1)
    assert error is not None
    assert error.hint == "did you mean `temperature`?"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"content": "x"}, "invalid_request", "messages[0].role"),
        ({"role": "king", "content": "x"}, "invalid_request", "messages[0].role"),
        ({"role": "user"}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": 5}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "unsupported_parameter", "messages[0].content"),
        ({"role": "assistant", "content": "", "tool_calls": [1]}, "unsupported_parameter", "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "mood": 1}, "unsupported_parameter", "messages[0].mood"),
    ],
)
def test_a_bad_message_is_named_by_its_path(message: dict[str, object], code: str, param: str) -> None:
    error = _parse(messages=[message])
    assert error is not None
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": NaN}',
        b'{"messages": ' + b"1" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
)
def test_a_hostile_body_is_one_line(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(body, request_id="r")
    assert "\n" not in caught.value.message
    json.dumps(error_body(caught.value), ensure_ascii=False).encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.dictionaries(
    st.sampled_from(["messages", "model", "stop", "max_tokens", "seed", "temperature", "stream", "stream_options", "n"])
    | st.text(max_size=4),
    _JSON,
    max_size=5,
)


@given(fields=_FIELDS, chat=st.booleans())
def test_any_json_object_is_understood_or_refused_in_one_line(fields: dict[str, object], *, chat: bool) -> None:
    if chat:
        fields = {**fields, "messages": HELLO}
    try:
        parse_chat(json.dumps(fields).encode(), request_id="r")
    except RequestError as error:
        refused = error
    else:
        return
    assert "\n" not in refused.message
    json.dumps(error_body(refused), ensure_ascii=False).encode()


def test_errors_usage_and_timings_have_their_shapes() -> None:
    error = RequestError("full", hint="wait", code="overloaded", retry_after_s=2.0)
    assert error_body(error)["error"] == {
        "message": "full",
        "type": "rate_limit_error",
        "code": "overloaded",
        "param": None,
        "hint": "wait",
        "retry_after_s": 2.0,
    }
    assert error_body(RunnerError("broken"))["error"]["type"] == "server_error"
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)
    assert usage_body(usage) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert timings_body(Timings(queue_s=0.1, prefill_s=2.0, decode_s=0.5), usage) == {
        "queue_s": 0.1,
        "prefill_s": 2.0,
        "decode_s": 0.5,
        "prompt_tokens_per_s": 3.0,
        "decode_tokens_per_s": 8.0,
    }
