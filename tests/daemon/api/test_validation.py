"""Every refusal names the field, and what it must be, in the words of JSON and of the API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from edgekit.daemon.api import parse_chat, parse_completion
from edgekit.daemon.api.anthropic import MessagesBody
from edgekit.daemon.api.chat import ChatBody
from edgekit.daemon.api.completion import CompletionBody
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.llama_server import LlamaCompletionBody, parse_llama_completion, parse_llama_infill
from edgekit.daemon.api.ollama import parse_ollama_chat, parse_ollama_generate
from edgekit.daemon.api.response_request import ResponseBody, parse_response
from edgekit.daemon.api.validation import Strict, build_validators, read
from edgekit.errors import RequestError

HELLO = [{"role": "user", "content": "Hello"}]
SCALARS: list[Any] = [None, True, 1, 1.5, 10**400, "x"]
VALUES: list[Any] = [*SCALARS, [], {}, [1], [None], ["x"], [{}], {"a": 1}, {"a": "x"}, {"a": None}]
# "`a.b[0]` must be …, not …", and the three refusals that say no more than this.
WORDS = re.compile(
    r"`[\w.\[\]]+` (is missing|is not supported|of this type is not supported; send text|are not supported; send text"
    r"|must be (a string|a number|an integer|true or false|an object|a list), not ([\w.…+-]+|a string|a list|an object)"
    r'|must be ("\w+"(, "\w+")*( or "\w+")?), not ("x"|[\w.…+-]+|a list|an object)'
    r'|must be a string, or a list of parts with `type` "(input_)?text" and a `text`)'
)


def models(parent: type[BaseModel] = Strict) -> Iterator[type[BaseModel]]:
    for model in parent.__subclasses__():
        yield model
        yield from models(model)


def sample(annotation: Any) -> Any:
    """A valid value of a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {field.alias or name: sample(field.annotation) for name, field in required(annotation)}
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) in {Union, UnionType}:
        return sample(get_args(annotation)[0])
    kinds = {str: "x", int: 1, float: 0.5, bool: True, list: [], dict: {}, NoneType: None, Any: 1}
    return kinds[get_origin(annotation) or annotation]


def required(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(name, field) for name, field in model.model_fields.items() if field.is_required()]


def wrong(annotation: Any) -> Iterator[Any]:
    """Values of every kind; where models are nested, also ones with a wrong value inside."""
    yield from VALUES
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        for argument in arguments:
            yield from wrong(argument)
    elif origin is list:
        yield from ([value] for value in wrong(arguments[0]))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            for value in wrong(field.annotation):
                yield {**sample(annotation), field.alias or name: value}


def refusal(model: type[BaseModel], value: object) -> RequestError | None:
    try:
        read(model, value)
    except RequestError as error:
        return error
    return None


def test_every_value_of_a_wrong_type_is_refused_in_words_of_json() -> None:
    refusals: dict[str, str | None] = {}
    for model in models():
        for name, field in model.model_fields.items():
            for value in wrong(field.annotation):
                error = refusal(model, {**sample(model), field.alias or name: value})
                if error is not None:
                    refusals[error.message] = error.param
    assert len(refusals) > 250
    assert [message for message in refusals if not WORDS.fullmatch(message)] == []
    assert [message for message, param in refusals.items() if not message.startswith(f"`{param}`")] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": "hello"}, "`messages` must be a list, not a string"),
        ({"messages": ["hello"]}, "`messages[0]` must be an object, not a string"),
        ({"messages": [{"role": "king"}]}, '`messages[0].role` must be "system", "developer", "user", "assistant" or '),
        ({"messages": HELLO, "temperature": "1"}, "`temperature` must be a number, not a string"),
        ({"messages": HELLO, "seed": 1.5}, "`seed` must be an integer, not 1.5"),
        ({"messages": HELLO, "stream": 1}, "`stream` must be true or false, not 1"),
        ({"messages": HELLO, "stop": {}}, "`stop` must be a list, not an object"),
        ({"messages": HELLO, "logit_bias": {"5": None}}, "`logit_bias.5` must be a number, not null"),
        ({"messages": HELLO, "truncation": "middle"}, '`truncation` must be "auto" or "disabled", not "middle"'),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_was_given(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(fields, request_id="r")
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n_predict": 0}, "n_predict"),
        ({"max_completion_tokens": 5, "max_tokens": 7}, "max_tokens"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_a_parameter_with_two_names_is_refused_under_the_one_that_was_sent(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat({"messages": HELLO, **fields}, request_id="r")
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


def test_a_completion_names_a_parameter_with_two_names_as_it_was_sent() -> None:
    for name in ("max_tokens", "n_predict"):
        with pytest.raises(RequestError) as caught:
            parse_completion({"prompt": "x", name: -5}, request_id="r")
        assert caught.value.param == name
        assert f"`{name}`" in caught.value.message


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_predict", 2_000_000),
        ("repeat_penalty", 11),
        ("repeat_last_n", -2),
        ("stop", ["x"] * 17),
        ("seed", 2**63),
        *((name, 3) for name in ("temperature", "top_p", "min_p", "typical_p")),
        *((name, -3) for name in ("top_k", "presence_penalty", "frequency_penalty")),
    ],
)
def test_ollamas_options_are_refused_by_ollamas_names(option: str, value: object, *, chat: bool) -> None:
    parse = parse_ollama_chat if chat else parse_ollama_generate
    body = {"model": "m", "prompt": "x"} if not chat else {"model": "m", "messages": HELLO}
    with pytest.raises(RequestError) as caught:
        parse(json.dumps({**body, "options": {option: value}}).encode(), request_id="r", client="", context_length=9)
    assert caught.value.param == f"options.{option}"
    assert f"`options.{option}`" in caught.value.message


PARSERS: dict[str, Callable[[bytes], object]] = {
    "chat": lambda body: parse_chat(body, request_id="r"),
    "completion": lambda body: parse_completion(body, request_id="r"),
    "ollama chat": lambda body: parse_ollama_chat(body, request_id="r", client="", context_length=100),
    "ollama generate": lambda body: parse_ollama_generate(body, request_id="r", client="", context_length=100),
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("NaN", "must be a finite number, not NaN"),
        ("-Infinity", "must be a finite number, not infinity"),
        ("1e999", "must be a finite number, not infinity"),
        ('"\\ud800"', "contains half of a surrogate pair, which is not a character"),
    ],
)
def test_a_value_that_cannot_be_encoded_again_is_refused_by_its_path(parser: str, value: str, problem: str) -> None:
    for body, path in (
        (f'{{"model": "m", "temperature": {value}}}', "temperature"),
        (f'{{"options": {{"stop": ["a", {{"b c": {value}}}]}}}}', 'options.stop[1]["b c"]'),
    ):
        with pytest.raises(RequestError) as caught:
            PARSERS[parser](body.encode())
        assert (caught.value.message, caught.value.param) == (f"`{path}` {problem}", path)


def test_a_value_that_is_nested_too_deeply_is_refused_by_its_field() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError) as caught:
        decode({"messages": HELLO, "response_format": {"schema": deep}})
    assert (caught.value.message, caught.value.param) == ("`response_format` is nested too deeply", "response_format")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body must be a JSON object, not a list"),
        (b"null", "the body must be a JSON object, not null"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "the body contains a number with too many digits"),
        (b"\xff", "the body is not UTF-8"),
        (b"[" * 100_000, "the body is nested too deeply"),
    ],
)
def test_a_body_that_is_no_object_is_refused_without_words_of_python(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(body, request_id="r")
    assert caught.value.message == message


def test_a_number_of_any_length_is_refused_by_name() -> None:
    for name in ("temperature", "seed", "max_tokens", "deadline_s"):
        with pytest.raises(RequestError) as caught:
            parse_chat(json.dumps({"messages": HELLO, name: 10**4000}).encode(), request_id="r")
        assert caught.value.param == name
        assert len(caught.value.message) < 200


def test_threads_that_need_a_validator_at_the_same_time_all_get_it() -> None:
    class Fresh(Strict):
        number: int

    assert not Fresh.__pydantic_complete__
    together = threading.Barrier(8)
    found: list[object] = []

    def validate() -> None:
        together.wait()
        found.append(read(Fresh, {"number": 3}).number)

    threads = [threading.Thread(target=validate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8


def test_the_validators_of_all_bodies_can_be_built_in_advance() -> None:
    class Fresh(Strict):
        number: int

    build_validators()
    assert Fresh.__pydantic_complete__


@pytest.mark.parametrize("dialect", ["chat", "completion", "response", "llama completion", "infill", "ollama"])
def test_a_seed_of_minus_one_is_a_random_one_in_every_dialect(dialect: str) -> None:
    bodies: dict[str, dict[str, Any]] = {"chat": {"messages": HELLO}, "response": {"input": "x"}}
    body = bodies.get(dialect, {"prompt": "x"})
    if dialect == "infill":
        body = {"input_prefix": "a", "input_suffix": "b"}

    def seed(value: int) -> int | None:
        data = json.dumps({**body, "seed": value}).encode()
        if dialect == "chat":
            return parse_chat(data, request_id="r")[0].sampling.seed
        if dialect == "completion":
            return parse_completion(data, request_id="r")[0].sampling.seed
        if dialect == "response":
            call = parse_response(data, request_id="r", client="", history=lambda _: (), find=lambda _: None)
            return call.request.sampling.seed
        if dialect == "ollama":
            data = json.dumps({"model": "m", **body, "options": {"seed": value}}).encode()
            request = parse_ollama_generate(data, request_id="r", client="", context_length=9).request
            return None if request is None else request.sampling.seed
        parse = parse_llama_infill if dialect == "infill" else parse_llama_completion
        return parse(data, request_id="r").request.sampling.seed

    assert (seed(-1), seed(7)) == (None, 7)


def test_two_names_of_one_parameter_with_different_values_are_both_named() -> None:
    for fields in (
        {"max_completion_tokens": 5, "max_tokens": 7},
        {"max_tokens": 5, "n_predict": 7},
        {"repetition_penalty": 1.5, "repeat_penalty": 2},
    ):
        with pytest.raises(RequestError) as caught:
            parse_chat({"messages": HELLO, **fields}, request_id="r")
        first, second = fields
        assert caught.value.hint == f"leave out `{first}` or `{second}`"


def test_a_hint_for_a_field_belongs_to_one_that_is_rejected() -> None:
    for model in models():
        assert set(model.instead) <= set(model.noop), model  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "body", "hint"),
    [
        (ChatBody, {"prompt": "x"}, "`messages`"),
        (ChatBody, {"input": "x"}, "`messages`"),
        (CompletionBody, {"messages": HELLO}, "`/v1/chat/completions`"),
        (LlamaCompletionBody, {"prompt": "x", "n_probs": 5}, "`logprobs`"),
        (ResponseBody, {"messages": HELLO}, "`input`"),
        (MessagesBody, {"model": "m", "messages": HELLO, "stop": ["x"]}, "`stop_sequences`"),
        (MessagesBody, {"model": "m", "messages": HELLO, "max_completion_tokens": 5}, "`max_tokens`"),
        (ChatBody, {"messages": HELLO, "prompt_logprobs": 0}, "leave it out"),
    ],
)
def test_a_field_of_another_api_is_answered_with_the_right_one(
    model: type[BaseModel], body: dict[str, Any], hint: str
) -> None:
    error = refusal(model, body)
    assert error is not None
    assert (error.code, error.param) == ("unsupported_parameter", [*body][-1])
    assert hint in (error.hint or "")


def test_a_body_for_ollamas_other_endpoint_is_not_answered_as_if_it_were_empty() -> None:
    for parser, field, value, endpoint in (
        ("ollama chat", "prompt", "x", "/api/generate"),
        ("ollama generate", "messages", HELLO, "/api/chat"),
    ):
        with pytest.raises(RequestError) as caught:
            PARSERS[parser](json.dumps({"model": "m", field: value}).encode())
        assert caught.value.param == field
        assert f"`{endpoint}`" in (caught.value.hint or "")
        # Without content either loads the model.
        PARSERS[parser](json.dumps({"model": "m", field: value[:0]}).encode())


@pytest.mark.parametrize(
    ("fields", "echoed"),
    [
        ({}, {"type": "text"}),
        ({"response_format": {"type": "json_object"}}, {"type": "json_object"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
        ),
        ({"regex": "[0-9]+"}, {"type": "regex", "regex": "[0-9]+"}),
    ],
)
def test_a_response_repeats_the_format_that_was_enforced(fields: dict[str, Any], echoed: dict[str, Any]) -> None:
    data = json.dumps({"input": "x", **fields}).encode()
    call = parse_response(data, request_id="r", client="", history=lambda _: (), find=lambda _: None)
    assert call.settings["text"]["format"] == echoed
