from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.api.ollama import (
    OllamaCall,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaOptions,
    parse_ollama_chat,
    parse_ollama_generate,
)
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Infill, Message, ResponseFormat, Sampling, Tool, ToolCall

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> ChatRequest:
    call = read(parse_ollama_chat, **{"model": "m", "messages": HELLO, **fields})
    assert call.request is not None
    return call.request


def generate(**fields: Any) -> ChatRequest:
    call = read(parse_ollama_generate, model="m", **fields)
    assert call.request is not None
    return call.request


def read(parse: Any, **fields: Any) -> OllamaCall:
    call = parse(json.dumps(fields).encode(), request_id="r", client="c", context_length=2048)
    assert isinstance(call, OllamaCall)
    return call


def test_every_option_arrives() -> None:
    options = {
        "num_predict": 9,
        "num_ctx": 2048,
        "temperature": 0.1,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_penalty": 1.5,
        "repeat_last_n": -1,
        "presence_penalty": 1,
        "frequency_penalty": 2,
        "seed": 42.0,
        "stop": ["a"],
        "num_gpu": 99,
        "num_thread": 4,
        "mirostat": 0,
    }
    request = chat(options=options, logprobs=True, top_logprobs=2, keep_alive="5m", think=False)
    assert request.sampling == Sampling(0.1, 0.5, 5, 0.1, 0.7, 1, 2, 1.5, -1, seed=42)
    assert (request.max_tokens, request.stop, request.logprobs) == (9, ("a",), 2)
    assert request.template_arguments == {"enable_thinking": False}
    assert (request.id, request.client) == ("r", "c")


def test_fields_left_out_are_the_models_as_in_the_other_apis() -> None:
    call = read(parse_ollama_chat, model="m", messages=HELLO)
    request = call.request
    assert request is not None
    assert request.sampling == Sampling.of()
    assert (request.max_tokens, request.truncation, request.response_format) == (None, "auto", None)
    assert (call.model, call.stream) == ("m", True)
    assert chat(truncate=False).truncation == "disabled"


@pytest.mark.parametrize(
    ("options", "max_tokens", "seed"),
    [({"num_predict": -1, "seed": -1}, None, None), ({"num_predict": -2}, None, None)],
)
def test_negative_numbers_that_mean_no_limit_are_none(
    options: dict[str, int], max_tokens: int | None, seed: int | None
) -> None:
    request = chat(options=options)
    assert (request.max_tokens, request.sampling.seed) == (max_tokens, seed)
    assert chat(options={"top_k": -1}).sampling.top_k == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("json", ResponseFormat("json_object")),
        ("", None),
        (None, None),
        ({"type": "object"}, ResponseFormat("json_schema", {"type": "object"})),
    ],
)
def test_a_format_is_json_or_a_schema(given: object, expected: ResponseFormat | None) -> None:
    assert chat(format=given).response_format == expected
    assert generate(prompt="x", format=given).response_format == expected


@pytest.mark.parametrize("key", ["tool_name", "name"])
def test_tools_and_calls_arrive_and_a_result_finds_its_call(key: str) -> None:
    function = {"name": "weather", "description": "Of now.", "parameters": {"type": "object"}}
    called = [
        {"function": {"name": "weather", "arguments": {"city": "Orléans"}}},
        {"function": {"name": "time", "arguments": {}}},
    ]
    turns = [
        *HELLO,
        {"role": "assistant", "tool_calls": called},
        {"role": "tool", "content": "noon", key: "time"},
        {"role": "tool", "content": "sunny"},
    ]
    request = chat(messages=turns, tools=[{"type": "function", "function": function}])
    assert request.tools == (Tool("weather", "Of now.", {"type": "object"}),)
    first = ToolCall("call_1_0", "weather", '{"city": "Orléans"}')
    second = ToolCall("call_1_1", "time", "{}")
    assert request.messages[1:] == (
        Message("assistant", "", tool_calls=(first, second)),
        Message("tool", "noon", tool_call_id="call_1_1", name="time"),
        Message("tool", "sunny", tool_call_id="call_1_0"),
    )


def test_generate_makes_a_chat_of_one_message_unless_it_is_raw() -> None:
    request = generate(prompt="Why?", system="Be brief.")
    assert request.messages == (Message("system", "Be brief."), Message("user", "Why?"))
    raw = generate(prompt="Once", raw=True, think=False)
    assert (raw.prompt, raw.messages, raw.truncation, raw.template_arguments) == ("Once", (), "disabled", {})


def test_a_body_without_a_prompt_makes_no_request() -> None:
    assert read(parse_ollama_chat, model="m", messages=[]).request is None
    assert read(parse_ollama_generate, model="m", prompt="", keep_alive=0).request is None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"options": {"mirostat": 2}}, "unsupported_parameter", "options.mirostat"),
        ({"options": {"top_k": 1.5}}, "invalid_request", "options.top_k"),
        ({"options": {"temperature": 9}}, "invalid_request", "options.temperature"),
        ({"options": [1]}, "invalid_request", "options"),
        ({"think": True}, "unsupported_parameter", "think"),
        ({"format": "yaml"}, "invalid_request", "format"),
        (
            {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]},
            "unsupported_parameter",
            "messages[0].images",
        ),
        ({"messages": [{"role": "king"}]}, "invalid_request", "messages[0].role"),
        ({"tools": [{"type": "function"}]}, "invalid_request", "tools[0].function"),
        ({"model": None}, "invalid_request", "model"),
    ],
)
def test_unsupported_and_invalid_fields_are_rejected_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_only_a_model_that_reasons_can_be_asked_to_think() -> None:
    for parse, fields in ((parse_ollama_chat, {"messages": HELLO}), (parse_ollama_generate, {"prompt": "Why?"})):

        def arguments(parse: Any = parse, fields: dict[str, Any] = fields, *, thinks: bool = True, **think: Any) -> Any:
            body = json.dumps({"model": "m", **fields, **think}).encode()
            call = parse(body, request_id="r", client="c", context_length=2048, thinks=thinks)
            return call.request.template_arguments

        assert arguments(think=True) == {"enable_thinking": True}
        assert arguments(think=False) == arguments(think=False, thinks=False) == {"enable_thinking": False}
        assert arguments(think=None) == arguments() == {}
        for think, thinks, text in (
            (True, False, "the model `m` cannot reason"),
            ("high", False, "the model `m` cannot reason"),
            ("high", True, "has a level"),
            (1, True, "must be true or false, not 1"),
        ):
            with pytest.raises(RequestError, match=text) as caught:
                arguments(think=think, thinks=thinks)
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "think")


@pytest.mark.parametrize(
    "fields",
    [
        {"context": [1], "raw": True},
        {"context": [-1]},
        {"template": "{{ .Prompt }}"},
        {"images": ["aa"]},
        {"raw": True, "system": "x"},
    ],
)
def test_fields_that_generate_does_not_support_are_rejected_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        generate(prompt="x", **fields)
    assert caught.value.param in fields


def test_a_suffix_makes_a_gap_to_fill() -> None:
    request = generate(prompt="def f():\n", suffix="\n", options={"num_predict": 8}, keep_alive=1800)
    assert (request.prompt, request.infill, request.messages) == ("def f():\n", Infill("\n"), ())
    assert (request.truncation, request.max_tokens, request.return_tokens) == ("auto", 8, False)
    assert generate(suffix="\n", truncate=False).truncation == "disabled"
    assert generate(prompt="x", suffix="").infill is None
    call = read(parse_ollama_generate, model="m", prompt="x", suffix="y", system="s", context=[1])
    assert call.warnings == ("`system` has no effect with `suffix`", "`context` has no effect with `suffix`")
    raw = read(parse_ollama_generate, model="m", prompt="x", suffix="y", raw=True)
    assert raw.warnings == ("`suffix` has no effect with `raw`",)
    assert raw.request is not None
    assert raw.request.infill is None


def test_earlier_tokens_go_in_front_of_the_prompt() -> None:
    request = generate(prompt="And?", context=[1, 2.0, 3])
    assert (request.context, request.return_tokens) == ((1, 2, 3), True)
    assert generate(prompt="And?").context == ()


def test_an_unknown_field_is_a_warning_as_ollama_ignores_it() -> None:
    call = read(parse_ollama_chat, model="m", messages=HELLO, temperature=0.5, dimensions=3, colour="x", empty="")
    assert call.request is not None
    assert call.warnings == (
        "the field `temperature` is unknown and has no effect; it belongs into `options`",
        "the field `dimensions` is unknown and has no effect",
        "the field `colour` is unknown and has no effect",
    )
    near = read(parse_ollama_chat, model="m", messages=HELLO, stream_options={"x": 1}, model_item={"y": 2})
    assert near.warnings == (
        "the field `stream_options` is unknown and has no effect; did you mean `options`?",
        "the field `model_item` is unknown and has no effect; did you mean `model`?",
    )
    kept = [{"role": "user", "content": "Hi", "timestamp": 1, "id": "x"}]
    assert chat(messages=kept).messages == (Message("user", "Hi"),)
    with pytest.raises(RequestError, match="tool_call` is not supported") as caught:
        chat(messages=[{"role": "assistant", "tool_call": [1]}])
    assert caught.value.param == "messages[0].tool_call"


def test_a_misspelt_field_without_which_the_body_means_something_else_is_refused() -> None:
    for parse, fields in (
        (parse_ollama_chat, {"model": "m", "massages": HELLO}),
        (parse_ollama_generate, {"model": "m", "promt": "x"}),
        (parse_ollama_generate, {"model": "m", "prompt": "x", "sufix": "y"}),
    ):
        with pytest.raises(RequestError, match="is not supported") as caught:
            read(parse, **fields)
        assert caught.value.param in fields
        assert "did you mean" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("keep_alive", "unload"), [(0, True), ("0", True), ("0s", True), (-1, False), ("5m", False), (None, False)]
)
def test_a_model_is_asked_to_unload_by_a_time_of_nothing(keep_alive: object, unload: bool) -> None:
    call = read(parse_ollama_generate, model="m", keep_alive=keep_alive)
    assert (call.request, call.unload, bool(call.warnings)) == (None, unload, unload)
    assert not read(parse_ollama_generate, model="m", prompt="x", keep_alive=keep_alive).unload


def test_an_unknown_option_and_a_longer_context_are_warnings() -> None:
    asked = {"temprature": 1, "num_ctx": 4096.0, "vision\n": 2, "nothing": None, "top_k": 7}
    call = read(parse_ollama_chat, model="m", messages=HELLO, options=asked)
    assert call.request is not None
    assert call.request.sampling.top_k == 7
    assert call.warnings == (
        "the option `temprature` is unknown and has no effect; did you mean `temperature`?",
        "the option `vision?` is unknown and has no effect",
        "`num_ctx` is 4096, but the context holds 2048 tokens",
    )
    many = read(parse_ollama_generate, model="m", prompt="x", options={f"o{number}": 1 for number in range(1000)})
    assert len(many.warnings) == 8
    assert read(parse_ollama_chat, model="m", messages=HELLO, options={"num_ctx": 2048}).warnings == ()


def test_a_field_that_is_null_is_as_if_left_out() -> None:
    names = {*OllamaChatBody.model_fields, *OllamaChatBody.ignored, *OllamaChatBody.noop, "mood"} - {
        "model",
        "messages",
    }
    options = {*OllamaOptions.model_fields, *OllamaOptions.ignored, *OllamaOptions.noop}
    nulls = {**dict.fromkeys(names), "options": dict.fromkeys(options)}
    assert chat(**nulls) == chat() == chat(options=[], logprobs=False, context=[], stop=None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    fields=st.dictionaries(
        st.sampled_from([*OllamaChatBody.model_fields, *OllamaGenerateBody.model_fields, "think"]), _JSON, max_size=5
    ),
    options=st.dictionaries(st.sampled_from(["num_ctx", "seed", "top_k", "stop", "mirostat"]), _JSON),
)
def test_any_json_object_is_parsed_or_rejected_in_one_line(
    fields: dict[str, object], options: dict[str, object]
) -> None:
    for parse in (parse_ollama_chat, parse_ollama_generate):
        assert "\n" not in problem(parse, {"model": "m", "options": options, **fields})


def problem(parse: Any, fields: dict[str, object]) -> str:
    try:
        read(parse, **fields)
    except RequestError as error:
        return error.message
    return ""
