"""Requests that fill in the middle, end at a line, continue earlier tokens, or return theirs, through the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel
from edgekit.generation.types import (
    ChatRequest,
    Delta,
    Finished,
    Infill,
    LineLimits,
    Message,
    Sampling,
    UsedTokens,
)
from tests.generation.filling import fill_model
from tests.generation.tiny import echo_model

HELLO = (Message("user", "Hello"),)


def run(model: TextModel, **fields: Any) -> tuple[str, Finished]:
    events = list(generate(model, ChatRequest("r", **fields)))
    last = events[-1]
    assert isinstance(last, Finished), last
    return "".join(event.text for event in events if isinstance(event, Delta)), last


def fill(answer: str, **fields: Any) -> tuple[str, Finished]:
    return run(fill_model(answer), **{"prompt": "def f():\n", "infill": Infill("\n"), **fields})


@pytest.mark.parametrize("end", ["<|fim_pad|>", "<|endoftext|>", "<|file_sep|>", "<|repo_name|>", "<|fim_prefix|>"])
def test_the_gap_is_filled_until_a_token_that_begins_something_else(end: str) -> None:
    text, last = fill(f"    return 1{end}other.py\n")
    assert (text, last.reason, last.usage.completion_tokens) == ("    return 1", "stop", 13)


def test_a_prompt_that_writes_the_tokens_itself_is_filled_too() -> None:
    model = replace(fill_model("1<|fim_pad|>2"), sampling={"temperature": 0.7})
    request = ChatRequest("r", prompt="<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", sampling=Sampling.of())
    assert model.prepare(request).request.sampling.temperature == 0
    assert run(model, prompt=request.prompt)[0] == "1"


def test_the_tokens_end_nothing_where_no_gap_is_filled() -> None:
    model = fill_model("1<|fim_pad|>2", opening="x")
    assert run(model, prompt="<|fim_prefix|>x")[0] == "1<|fim_pad|>2"


def test_a_leading_space_of_the_filling_is_kept_also_after_nothing() -> None:
    assert fill("  x", prompt="")[0] == "  x"


def test_nothing_may_be_generated_to_compute_the_prompt_only() -> None:
    text, last = fill("x", max_tokens=0)
    assert (text, last.reason, last.usage.completion_tokens) == ("", "length", 0)


def test_a_model_that_cannot_fill_says_so_and_what_to_do() -> None:
    with pytest.raises(RequestError, match="cannot fill in the middle") as caught:
        echo_model().prepare(ChatRequest("r", prompt="a", infill=Infill("b", param="input_suffix")))
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "input_suffix")
    assert "Qwen2.5-Coder" in (caught.value.hint or "")


def test_the_models_sampling_for_chats_does_not_apply() -> None:
    model = replace(fill_model("x"), sampling={"temperature": 0.7, "repetition_penalty": 1.1})
    filled = model.prepare(ChatRequest("r", prompt="a", infill=Infill("b"), sampling=Sampling.of()))
    assert filled.request.sampling == Sampling()
    stated = model.prepare(ChatRequest("r", prompt="a", infill=Infill("b"), sampling=Sampling.of(temperature=0.2)))
    assert stated.request.sampling == Sampling(temperature=0.2)
    continued = model.prepare(ChatRequest("r", prompt="a", sampling=Sampling.of()))
    assert continued.request.sampling.temperature == 0.7


def test_what_is_too_long_is_shortened_or_refused_as_the_request_says() -> None:
    model = fill_model("x", context_length=64)
    long = {"prompt": "a" * 100, "infill": Infill("b" * 100), "max_tokens": 8}
    prepared = model.prepare(ChatRequest("r", truncation="auto", **long))  # type: ignore[arg-type]
    assert len(prepared.prompt) == 56
    with pytest.raises(RequestError) as caught:
        model.prepare(ChatRequest("r", **long))  # type: ignore[arg-type]
    assert caught.value.code == "context_length_exceeded"


def test_the_output_ends_with_its_line_once_the_time_is_over() -> None:
    answer = "one\ntwo\nthree\n"
    # The first token is always in time.
    text, last = fill(answer, line_limits=LineLimits(seconds=1e-9))
    assert (text, last.reason) == ("one\n", "length")
    assert fill(answer, line_limits=LineLimits(seconds=1e6))[0] == answer


def test_the_output_ends_before_a_line_that_leaves_the_block() -> None:
    text, last = fill("a\n    b\nc\n", line_limits=LineLimits(min_indent=4))
    assert (text, last.reason) == ("a\n    b", "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": HELLO, "infill": Infill("x")}, "suffix"),
        ({"prompt": "a", "infill": Infill("x"), "echo": True}, "echo"),
        ({"prompt": "a", "context": (1,)}, "context"),
        ({"messages": HELLO, "context": (-1,)}, "context"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest("r", **fields)
    assert caught.value.param == param
    for limits, name in (({"seconds": 0.0}, "t_max_predict_ms"), ({"min_indent": -1}, "n_indent")):
        with pytest.raises(RequestError) as caught:
            LineLimits(**limits)
        assert caught.value.param == name


def test_the_tokens_of_an_answer_go_in_front_of_the_next_chat() -> None:
    model = echo_model("Paris.")
    encode = model.tokenizer.encode
    first = run(model, messages=HELLO, return_tokens=True)[1].tokens
    prompt = encode("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert first == UsedTokens(tuple(prompt), (tuple(encode("Paris.<|im_end|>")),))
    context = (*first.prompt, *first.outputs[0])
    model = echo_model("Paris.")
    second = run(model, messages=(Message("user", "And?"),), context=context, return_tokens=True)[1].tokens
    assert second is not None
    assert model.tokenizer.decode(second.prompt, visible=model.tokenizer.special_ids) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nParis.<|im_end|>"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert run(echo_model("Paris."), messages=HELLO)[1].tokens is None


def test_earlier_tokens_are_dropped_where_the_context_is_too_short() -> None:
    model = echo_model("x", context_length=96)
    new = model.encode(ChatRequest("r", HELLO)).tokens
    old = tuple(range(80))
    kept = model.encode(ChatRequest("r", HELLO, context=old, truncation="auto", max_tokens=10)).tokens
    assert (len(kept), tuple(kept)) == (86, (*old[80 - (86 - len(new)) :], *new))
    with pytest.raises(RequestError) as caught:
        model.prompt(ChatRequest("r", HELLO, context=old))
    assert caught.value.code == "context_length_exceeded"
