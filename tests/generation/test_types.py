"""Requests: the ranges of their values, and which values go together."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.types import (
    MAX_TOOLS,
    MODEL_SAMPLING,
    ChatRequest,
    Finished,
    Message,
    ResponseFormat,
    Sampling,
    Tool,
    ToolChoice,
)
from edgekit.generation.usage import Timings, Usage

CHAT = (Message("user", "Hi"),)


def request(**fields: Any) -> ChatRequest:
    messages: tuple[Message, ...] = () if "prompt" in fields else CHAT
    return ChatRequest("r", **{"messages": messages, **fields})


@pytest.mark.parametrize(
    ("name", "least", "most", "step"),
    [
        ("temperature", 0.0, 2.0, 1e-9),
        ("top_p", 0.0, 1.0, 1e-9),
        ("min_p", 0.0, 1.0, 1e-9),
        ("typical_p", 0.0, 1.0, 1e-9),
        ("top_k", 0, 1_000_000, 1),
        ("presence_penalty", -2.0, 2.0, 1e-9),
        ("frequency_penalty", -2.0, 2.0, 1e-9),
        ("repetition_penalty", 0.01, 10.0, 1e-9),
        ("repeat_last_n", -1, 1 << 24, 1),
        ("seed", -(2**63), 2**63 - 1, 1),
    ],
)
def test_a_sampling_parameter_has_a_range_that_includes_its_ends(
    name: str, least: float, most: float, step: float
) -> None:
    def sampling(value: Any) -> Any:
        return getattr(Sampling(**{name: value}), name)

    assert [sampling(value) for value in (least, most)] == [least, most]
    for value in (least - step, most + step, math.nan, "1", True):
        with pytest.raises(RequestError, match=f"`{name}` must be between") as caught:
            sampling(value)
        assert caught.value.param == name


def test_a_fraction_is_no_number_of_tokens() -> None:
    with pytest.raises(RequestError, match="`top_k` must be an integer"):
        Sampling(top_k=1.5)  # type: ignore[arg-type]


def test_biases_are_limited_in_number_size_and_by_the_vocabulary() -> None:
    assert len(Sampling(logit_bias=dict.fromkeys(range(1024), -100.0)).logit_bias) == 1024
    with pytest.raises(RequestError, match="at most 1024"):
        Sampling(logit_bias=dict.fromkeys(range(1025), 0.0))
    for biases in ({-1: 0.0}, {(1 << 24) + 1: 0.0}, {0: 100.1}, {0: -100.1}):
        with pytest.raises(RequestError) as caught:
            Sampling(logit_bias=biases)
        assert caught.value.param == "logit_bias"
    Sampling(logit_bias={9: 100.0}).check_vocabulary(10)
    Sampling().check_vocabulary(1)
    with pytest.raises(RequestError, match="token 10; the vocabulary has 10"):
        Sampling(logit_bias={10: 1.0, 2: 1.0}).check_vocabulary(10)


def test_what_a_request_leaves_out_is_the_models_choice() -> None:
    sampling = Sampling.of(temperature=0.5, top_k=None, seed=3)
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 0, 3)
    assert sampling.left_to_model == MODEL_SAMPLING - {"temperature"}
    taken = sampling.with_defaults({"temperature": 0.7, "top_k": 20})
    assert (taken.temperature, taken.top_k, taken.left_to_model) == (0.5, 20, frozenset())


@pytest.mark.parametrize(
    ("sampling", "greedy", "repeatable"),
    [
        (Sampling(), True, True),
        (Sampling(temperature=9e-7), True, True),
        (Sampling(temperature=1e-6), False, False),
        (Sampling(temperature=1.0, top_k=1), True, True),
        (Sampling(temperature=1.0, top_k=2), False, False),
        (Sampling(temperature=1.0, seed=0), False, True),
    ],
)
def test_an_answer_is_repeatable_if_it_is_greedy_or_seeded(
    sampling: Sampling, *, greedy: bool, repeatable: bool
) -> None:
    assert (sampling.greedy, sampling.repeatable) == (greedy, repeatable)


def test_each_choice_has_a_seed_of_its_own_within_the_range_of_seeds() -> None:
    assert [Sampling(seed=5).for_choice(index).seed for index in range(3)] == [5, 6, 7]
    assert Sampling(seed=2**63 - 1).for_choice(1).seed == -(2**63)
    assert Sampling(seed=-(2**63)).for_choice(2).seed == -(2**63) + 2
    assert Sampling().for_choice(3).seed is None


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("max_tokens", 1, 1_000_000), ("priority", -1000, 1000), ("n", 1, 16), ("logprobs", 0, 20)],
)
def test_a_limit_of_a_request_has_a_range_that_includes_its_ends(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(request(**{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(RequestError) as caught:
            request(**{name: value})
        assert caught.value.param == name


def test_no_token_may_be_asked_for_only_where_the_prompt_is_echoed() -> None:
    assert request(prompt="a", echo=True, max_tokens=0).max_tokens == 0
    with pytest.raises(RequestError, match="max_tokens"):
        request(prompt="a", max_tokens=0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ()}, "messages"),
        ({"messages": CHAT, "prompt": "a"}, "prompt"),
        ({"stop": ("a",) * 17}, "stop"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("ok", "x" * 257)}, "stop"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"echo": True}, "echo"),
        ({"tools": (Tool("a"), Tool("a"))}, "tools"),
        ({"tools": tuple(Tool(f"t{number}") for number in range(MAX_TOOLS + 1))}, "tools"),
        ({"tools": (Tool("a"),), "prompt": "a"}, "tools"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": (Tool("a"),), "tool_choice": ToolChoice("required", "b")}, "tool_choice"),
        (
            {
                "tools": (Tool("a"),),
                "tool_choice": ToolChoice("required"),
                "response_format": ResponseFormat("json_object"),
            },
            "response_format",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        request(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"stop": ("x" * 256,) * 16},
        {"deadline_s": 1e-9},
        {"prompt": "a", "echo": True},
        {"tools": tuple(Tool(f"t{number}") for number in range(MAX_TOOLS))},
        {"tools": (Tool("a"), Tool("b")), "tool_choice": ToolChoice("required", "b")},
        {"tools": (Tool("a"),), "response_format": ResponseFormat("json_object")},
        {"tool_choice": ToolChoice("none")},
    ],
)
def test_any_other_request_is_accepted(fields: dict[str, Any]) -> None:
    assert request(**fields).id == "r"


def test_what_a_request_does_not_say_has_defaults() -> None:
    plain = request()
    assert (plain.parallel_tool_calls, plain.cache_prompt, plain.echo, plain.speculation) == (True, True, False, None)
    assert not Tool("a").strict


def test_one_choice_ends_for_the_reason_of_its_request() -> None:
    usage, timings = Usage(1, 1), Timings(0, 0, 0)
    assert Finished("length", usage, timings).reasons == ("length",)
    assert Finished("length", usage, timings, ("length", "stop")).reasons == ("length", "stop")
