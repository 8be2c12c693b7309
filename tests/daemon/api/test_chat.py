from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.api import error_body, parse_chat, parse_completion
from edgekit.daemon.api.chat import ChatBody as _Body
from edgekit.daemon.api.completion import CompletionBody as _CompletionBody
from edgekit.daemon.api.other_fields import CHAT_INSTEAD, CHAT_NOOP, COMPLETION_INSTEAD, COMPLETION_NOOP, IGNORED
from edgekit.errors import RequestError
from edgekit.generation.types import Message, Sampling, ToolCall

HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


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
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "typical_p": 0.8,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "repeat_last_n": 64,
        "logit_bias": {"5": -100, "70": 2.5},
        "seed": -3,
        "stop": ["a", "b"],
        "n": 3,
        "logprobs": True,
        "top_logprobs": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
        "deadline_s": 2.5,
        "priority": -2,
        "truncation": "auto",
        "cache_prompt": False,
        "speculation": True,
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    request, options = parse_chat(body, request_id="r1", client="10.0.0.1")
    assert request.messages[0] == Message("system", "Be brief.")
    assert [message.role for message in request.messages] == ["system", "user", "assistant"]
    assert request.sampling == Sampling(
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.8,
        presence_penalty=-1,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        repeat_last_n=64,
        logit_bias={5: -100, 70: 2.5},
        seed=-3,
    )
    assert (request.max_tokens, request.stop, request.deadline_s) == (7, ("a", "b"), 2.5)
    assert (request.id, request.client, request.tenant) == ("r1", "10.0.0.1", "")
    assert (request.n, request.logprobs, request.priority) == (3, 4, -2)
    assert (request.truncation, request.cache_prompt, request.speculation) == ("auto", False, True)
    assert request.parallel_tool_calls is False
    assert request.template_arguments == {"enable_thinking": True}
    assert (options.model, options.stream, options.include_usage) == ("m", True, True)


def test_fields_left_out_have_their_defaults() -> None:
    request, _ = parse_chat({"messages": HELLO}, request_id="r")
    assert request.sampling == Sampling.of()
    assert (request.n, request.logprobs, request.max_tokens, request.speculation) == (1, None, None, None)
    assert (request.truncation, request.cache_prompt, request.parallel_tool_calls) == ("disabled", True, True)
    assert (request.response_format, request.tools, request.template_arguments) == (None, (), {})


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"repeat_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"repeat_penalty": 1.3, "repetition_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 40.0}, "top_k", 40),
        ({"seed": -3.0}, "seed", -3),
        ({"repeat_last_n": 64.0}, "repeat_last_n", 64),
        ({"logit_bias": {}}, "logit_bias", {}),
        ({"logit_bias": []}, "logit_bias", {}),
    ],
)
def test_other_servers_spellings_are_aliases(fields: dict[str, object], name: str, value: object) -> None:
    request, _ = parse_chat({"messages": HELLO, **fields}, request_id="r")
    assert getattr(request.sampling, name) == value


def test_logprobs_without_a_number_report_only_the_chosen_token() -> None:
    assert parse_chat({"messages": HELLO, "logprobs": True}, request_id="r")[0].logprobs == 0


def test_the_reasoning_format_says_where_reasoning_goes() -> None:
    for kind, where in ((None, "apart"), ("auto", "apart"), ("deepseek", "apart"), ("none", "inline")):
        request, _ = parse_chat({"messages": HELLO, "reasoning_format": kind}, request_id="r")
        assert request.reasoning == where


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("minimal", False), ("low", True), ("high", True)])
def test_reasoning_effort_sets_both_variables_that_templates_read(effort: str, thinks: bool) -> None:
    request, _ = parse_chat({"messages": HELLO, "reasoning_effort": effort}, request_id="r")
    assert request.template_arguments == {"enable_thinking": thinks, "reasoning_effort": effort}
    assert parse_chat({"messages": HELLO}, request_id="r")[0].template_arguments == {}


def test_the_last_message_may_be_continued_or_nothing_added() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "The"}]
    for fields, turn in (
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue"),
        ({"continue_final_message": True}, "continue"),
        ({"add_generation_prompt": False}, "none"),
        ({"continue_final_message": False, "add_generation_prompt": True}, "new"),
    ):
        assert parse_chat({"messages": begun, **fields}, request_id="r")[0].turn == turn


def test_calls_and_their_answers_arrive_with_ids_and_names() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    empty = {"id": "call_2", "index": 1, "function": {"name": "time", "arguments": ""}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, empty], "refusal": None},
        {"role": "tool", "tool_call_id": "call_2", "content": "noon", "name": "time"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    messages = parse_chat({"messages": turns}, request_id="r")[0].messages
    calls = (ToolCall("call_1", "weather", '{"city": "Paris"}'), ToolCall("call_2", "time", "{}"))
    assert messages[1:] == (
        Message("assistant", "", tool_calls=calls),
        Message("tool", "noon", tool_call_id="call_2", name="time"),
        Message("tool", "sunny", tool_call_id="call_1"),
    )


def test_text_parts_are_joined_and_stop_may_be_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request, options = parse_chat({"messages": [{"role": "user", "content": parts}], "stop": "x"}, request_id="r")
    assert request.messages == (Message("user", "a\nb"),)
    assert request.stop == ("x",)
    assert (options.model, options.stream) == (None, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True},
        {"temperature": None, "stop": None, "stream_options": None, "tools": None, "model": None, "n": None},
        {"functions": [], "function_call": "none", "verbosity": "low"},
        {"chat_template_kwargs": [], "stream_options": [], "tools": None, "stop": [""], "unheard_of": None},
        {"response_format": {"type": "json_schema", "json_schema": {"name": None, "schema": {}, "strict": None}}},
        {"tools": [{"type": None, "function": {"name": "f", "parameters": None, "strict": None}, "x": None}]},
        {"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}}]},
        {"messages": [{**HELLO[0], "cache_control": {"type": "ephemeral"}, "name": None, "tool_calls": None}]},
        {"banned_strings": [], "custom_token_bans": "", "extra_body": {}, "grammar": ""},
        {"mirostat": 0, "mirostat_tau": 5.0, "dry_multiplier": 0.0, "dry_base": 1.75, "best_of": 1.0},
    ],
)
def test_parameters_that_change_nothing_are_accepted(fields: dict[str, object]) -> None:
    assert _parse(**fields) is None


@pytest.mark.parametrize("noop", [CHAT_NOOP, COMPLETION_NOOP])
def test_every_field_of_another_server_is_accepted_with_a_value_without_effect_only(
    noop: dict[str, tuple[object, ...]],
) -> None:
    parse = parse_chat if noop is CHAT_NOOP else parse_completion
    instead = CHAT_INSTEAD if noop is CHAT_NOOP else COMPLETION_INSTEAD
    start = {"messages": HELLO} if noop is CHAT_NOOP else {"prompt": "Once"}
    for name, values in noop.items():
        for value in (None, *values):
            parse({**start, name: value}, request_id="r")
        for value in ("?", 7.5, not values[0] if values and isinstance(values[0], bool) else [{"a": 1}]):
            with pytest.raises(RequestError) as caught:
                parse({**start, name: value}, request_id="r")
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)
            assert caught.value.hint == instead.get(name, "leave it out")


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
def test_a_field_that_is_null_is_as_if_left_out(parse: Callable[..., Any]) -> None:
    start = {"messages": HELLO} if parse is parse_chat else {"prompt": "Once"}
    names = {*_Body.model_fields, *_CompletionBody.model_fields, *IGNORED, *CHAT_NOOP, *COMPLETION_NOOP, "mood"}
    nulls = dict.fromkeys(names - {"messages", "prompt"})
    assert parse({**start, **nulls}, request_id="r") == parse(start, request_id="r")


def test_every_integer_may_be_written_as_a_float_without_a_fraction() -> None:
    whole = {"max_tokens": 5, "n": 2, "seed": 3, "top_k": 4, "repeat_last_n": 6, "priority": 1, "n_predict": 5}
    asked = {**whole, "logprobs": True, "top_logprobs": 2}
    floats = {name: float(value) if type(value) is int else value for name, value in asked.items()}
    read, expected = (parse_chat({"messages": HELLO, **fields}, request_id="r") for fields in (floats, asked))
    assert read == expected
    for name in whole:
        error = _parse(**{name: 1.5})
        assert error is not None
        assert (error.code, error.param) == ("invalid_request", name)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_negative_maximum_of_tokens_is_none(name: str) -> None:
    assert parse_chat({"messages": HELLO, name: -1}, request_id="r")[0].max_tokens is None
    assert parse_chat({"messages": HELLO, name: 9}, request_id="r")[0].max_tokens == 9
    assert _parse(**{name: -7}) is not None


@pytest.mark.parametrize(("given", "read"), [("", ()), ([""], ()), (["", "a"], ("a",)), ([], ()), ("a", ("a",))])
def test_an_empty_stop_string_stops_nothing(given: object, read: tuple[str, ...]) -> None:
    assert parse_chat({"messages": HELLO, "stop": given}, request_id="r")[0].stop == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("mirostat", 2),
    ],
)
def test_parameters_that_would_change_the_answer_are_rejected_by_name(name: str, value: object) -> None:
    error = _parse(**{name: value})
    assert error is not None
    assert (error.code, error.param) == ("unsupported_parameter", name)


def test_the_deprecated_function_parameters_name_their_successor() -> None:
    error = _parse(functions=[{"name": "f"}])
    assert error is not None
    assert "`tools`" in (error.hint or "")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 17}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"priority": 5000}, "priority"),
        ({"truncation": "middle"}, "truncation"),
        ({"reasoning_format": "deepseek-legacy"}, "reasoning_format"),
        ({"speculation": "yes"}, "speculation"),
        ({"max_tokens": 5, "max_completion_tokens": 7}, "max_tokens"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"verbosity": "huge"}, "verbosity"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"},
            "chat_template_kwargs.reasoning_effort",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            "chat_template_kwargs.enable_thinking",
        ),
    ],
)
def test_values_out_of_range_and_contradictions_are_rejected_by_name(fields: dict[str, object], param: str) -> None:
    error = _parse(**fields)
    assert error is not None
    assert (error.code, error.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 1_000_001}, "`top_k` must be between 0 and 1000000, not 1000001"),
        ({"max_tokens": 0}, "`max_tokens` must be between 1 and 1000000, not 0"),
        ({"seed": 2**63}, f"`seed` must be between {-(2**63)} and {2**63 - 1}, not {2**63}"),
        ({"repeat_last_n": -2}, "`repeat_last_n` must be between -1 and 16777216, not -2"),
        ({"logit_bias": {"99999999": 1}}, "a token id of `logit_bias` must be between 0 and 16777216, not 99999999"),
        ({"logit_bias": {"5": -101}}, "a bias of `logit_bias` must be between -100 and 100, not -101"),
        ({"temperature": 2.0000001}, "`temperature` must be between 0 and 2, not 2.0000001"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be between 0.01 and 10, not 0"),
    ],
)
def test_a_range_and_the_value_outside_it_are_spelled_in_digits(fields: dict[str, object], message: str) -> None:
    error = _parse(**fields)
    assert error is not None
    assert error.message == message


def test_a_misspelt_parameter_is_rejected_with_the_right_one_as_a_hint() -> None:
    error = _parse(temprature=1)
    assert error is not None
    assert error.hint == "did you mean `temperature`?"
    empty = _parse(tool_choise="")
    assert empty is not None
    assert empty.hint == "did you mean `tool_choice`?"
    nested = _parse(stream_options={"include_usages": True})
    assert nested is not None
    assert (nested.param, nested.hint) == ("stream_options.include_usages", "did you mean `include_usage`?")


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"content": "x"}, "invalid_request", "messages[0].role"),
        ({"role": "king", "content": "x"}, "invalid_request", "messages[0].role"),
        ({"role": "user"}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": 5}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "invalid_request", "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "unsupported_parameter", "messages[0].content"),
        ({"role": "assistant", "function_call": {}}, "unsupported_parameter", "messages[0].function_call"),
        ({"role": "user", "content": None}, "invalid_request", "messages[0].content"),
        ({"role": "system", "content": None}, "invalid_request", "messages[0].content"),
        ({"role": "assistant", "tool_calls": [1]}, "invalid_request", "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "invalid_request", "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [CALL, CALL]}, "invalid_request", "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "invalid_request", "messages[0].tool_calls"),
        ({"role": "tool", "content": "x", "tool_call_id": "b"}, "invalid_request", "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "b"}, "invalid_request", "messages[0].tool_call_id"),
        ({"role": "user", "contents": "x"}, "unsupported_parameter", "messages[0].contents"),
    ],
)
def test_an_invalid_message_is_named_by_its_path(message: dict[str, object], code: str, param: str) -> None:
    error = _parse(messages=[message])
    assert error is not None
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize("arguments", ["5", "[]", "{a", "[{", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000])
def test_the_arguments_of_a_call_are_a_json_object(arguments: str) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    error = _parse(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error is not None
    assert error.param == "messages[0].tool_calls[0].function.arguments"


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
        b'{"messages": [{"role": "user", "content": "x"}], "json_schema": {"minimum": 1e999}}',
    ],
)
def test_a_hostile_body_is_rejected_in_one_line(body: bytes) -> None:
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
    st.sampled_from([*_Body.model_fields]) | st.text(max_size=4),
    _JSON,
    max_size=5,
)


@given(fields=_FIELDS, chat=st.booleans())
def test_any_json_object_is_parsed_or_rejected_in_one_line(fields: dict[str, object], *, chat: bool) -> None:
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
