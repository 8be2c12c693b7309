from __future__ import annotations

from typing import Any

import pytest

from edgekit.daemon.api import parse_completion, parse_completions
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Infill, ResponseFormat


def parse(**fields: Any) -> ChatRequest:
    return parse_completion({"prompt": "Once", **fields}, request_id="r", client="c")[0]


def test_every_field_of_a_completion_arrives() -> None:
    request, options = parse_completion(
        {
            "model": "m",
            "prompt": "Once",
            "max_tokens": 0,
            "echo": True,
            "logprobs": 5,
            "n": 2,
            "stop": "x",
            "best_of": 2,
            "suffix": "",
            "seed": 7,
            "temperature": 0,
            "guided_regex": "a",
            "stream": True,
        },
        request_id="r",
        client="c",
    )
    assert (request.prompt, request.messages, request.echo, request.max_tokens) == ("Once", (), True, 0)
    assert (request.logprobs, request.n, request.stop, request.sampling.seed) == (5, 2, ("x",), 7)
    assert request.response_format == ResponseFormat("regex", "a")
    assert (request.id, request.client, options.stream, options.model) == ("r", "c", True, "m")


def test_fields_left_out_have_the_apis_defaults() -> None:
    request = parse()
    assert (request.max_tokens, request.echo, request.logprobs, request.n) == (16, False, None, 1)


def test_values_that_ask_for_nothing_are_as_if_left_out() -> None:
    assert parse(logprobs=False, echo=False, tools=[], tool_choice="none", max_tokens=16.0) == parse()
    assert parse(truncation="disabled", chat_template_kwargs={}, messages=[]) == parse()
    assert parse(max_tokens=-1).max_tokens is parse(n_predict=-1).max_tokens is None
    assert parse(n_predict=9).max_tokens == 9


def test_a_single_prompt_may_be_in_a_list() -> None:
    assert parse(prompt=["Once"]).prompt == "Once"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": [1, -2, 3]}, "invalid_request", "prompt[1]"),
        ({"prompt": [[1], [2, 1 << 30]]}, "invalid_request", "prompt[1][1]"),
        ({"prompt": [1, "a"]}, "invalid_request", "prompt[1]"),
        ({"prompt": [1, True]}, "invalid_request", "prompt[1]"),
        ({"prompt": ["a", 1]}, "invalid_request", "prompt[1]"),
        ({"prompt": ["a"] * 129}, "invalid_request", "prompt"),
        ({"prompt": ["a"] * 9, "n": 16}, "invalid_request", "n"),
        ({"best_of": 17}, "invalid_request", "best_of"),
        ({"n": 3, "best_of": 2}, "invalid_request", "best_of"),
        ({"best_of": 2, "stream": True}, "invalid_request", "best_of"),
        ({"best_of": 2, "echo": True}, "invalid_request", "best_of"),
        ({"prompt": ["a", "b"]}, "unsupported_parameter", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": None}, "invalid_request", "prompt"),
        ({"prompt": {}}, "invalid_request", "prompt"),
        ({"suffix": 1}, "invalid_request", "suffix"),
        ({"suffix": "end", "echo": True}, "invalid_request", "echo"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"logprobs": True}, "invalid_request", "logprobs"),
        ({"logprobs": 21}, "invalid_request", "logprobs"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"messages": [{}]}, "unsupported_parameter", "messages"),
        ({"tools": [{}]}, "unsupported_parameter", "tools"),
        ({"sufix": "x"}, "unsupported_parameter", "sufix"),
    ],
)
def test_unsupported_and_invalid_fields_are_rejected_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.hint or code == "invalid_request"


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["a", [7]], ["a", (7,)]),
    ],
)
def test_prompts_are_text_or_token_ids_alone_or_several(given: Any, prompts: list[Any]) -> None:
    found = parse_completions({"prompt": given, "seed": 3}, request_id="r")
    assert [request.prompt for request in found.requests] == prompts
    assert {request.sampling.seed for request in found.requests} == {3}


def test_a_suffix_makes_a_gap_to_fill() -> None:
    request = parse(prompt="def f():", suffix="\n")
    assert (request.prompt, request.infill, request.truncation) == ("def f():", Infill("\n"), "disabled")
    assert parse(suffix="") == parse(suffix=None) == parse()


def test_a_missing_prompt_is_reported() -> None:
    with pytest.raises(RequestError, match="`prompt` is missing") as caught:
        parse_completion(b"{}", request_id="r")
    assert caught.value.param == "prompt"
