from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.api.llama_server import (
    LlamaServerCall,
    _Completion,
    _Infill,
    parse_llama_completion,
    parse_llama_infill,
)
from edgekit.daemon.api.utilities import read_detokenize, read_tokenize
from edgekit.errors import RequestError
from edgekit.generation.types import Infill, LineLimits, Sampling


def infill(**fields: Any) -> LlamaServerCall:
    body = {"input_prefix": "a", "input_suffix": "b", **fields}
    return parse_llama_infill(json.dumps(body).encode(), request_id="r", client="c")


def completion(**fields: Any) -> LlamaServerCall:
    return parse_llama_completion(json.dumps({"prompt": "a", **fields}).encode(), request_id="r", client="c")


def test_the_fields_of_infill_arrive() -> None:
    call = infill(
        prompt="    x",
        input_extra=[{"filename": "f.py", "text": "t", "time": 5}, {"text": "u"}],
        n_predict=7,
        top_k=40,
        top_p=0.99,
        seed=3,
        stop=["\n\n"],
        stream=True,
        return_tokens=True,
        n_indent=4,
        t_max_predict_ms=1500,
        t_max_prompt_ms=500,
        id_slot=0,
        samplers=["top_k", "top_p", "infill"],
    )
    request = call.request
    assert (request.prompt, request.infill) == ("a    x", Infill("b", (("f.py", "t"), ("tmp", "u"))))
    assert (request.max_tokens, request.stop, request.truncation) == (7, ("\n\n",), "auto")
    assert request.sampling == Sampling.of(top_k=40, top_p=0.99, seed=3)
    assert request.line_limits == LineLimits(1.5, 4)
    assert (call.options.stream, call.return_tokens, call.many) == (True, True, False)
    assert (request.id, request.client, request.return_tokens) == ("r", "c", True)


def test_the_fields_of_a_completion_arrive() -> None:
    call = completion(model="m", n_predict=-1, temperature=-1, logit_bias=[[15, 1.5], [16, False]], seed=-1)
    request = call.request
    assert (request.prompt, request.infill, request.truncation, request.max_tokens) == ("a", None, "disabled", None)
    assert request.sampling == Sampling.of(temperature=0.0, logit_bias={15: 1.5, 16: -100.0})
    assert (request.line_limits, call.options.model) == (None, "m")
    assert completion(logit_bias={"15": 1.5}).request.sampling.logit_bias == {15: 1.5}


@pytest.mark.parametrize("off", [0, -1, None])
def test_limits_that_are_off_are_none(off: int | None) -> None:
    assert infill(t_max_predict_ms=off, n_indent=0 if off == -1 else off).request.line_limits is None


def test_greedy_completions_are_computed_once() -> None:
    assert [(call.request.n, call.many) for call in (infill(n_cmpl=3), infill(n=3, temperature=0))] == [(1, True)] * 2
    sampled = infill(n_cmpl=3, temperature=0.5)
    assert (sampled.request.n, sampled.many) == (3, True)
    # A completion takes the model's sampling, which may not be greedy.
    assert completion(n_cmpl=3).request.n == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 2, "n_cmpl": 3}, "n_cmpl"), ({"n_predict": 0}, "n_predict"), ({"logit_bias": [["x"]]}, "logit_bias")],
)
def test_what_a_completion_does_not_take_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        completion(**fields)
    assert caught.value.param == param


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = sorted({*_Completion.model_fields, *_Infill.model_fields, *_Infill.noop, "content", "tokens", "messages"})


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=5))
def test_any_json_object_is_parsed_or_rejected_in_one_line(fields: dict[str, object]) -> None:
    for parse, body in (
        (lambda data: parse_llama_infill(data, request_id="r"), {"input_prefix": "a", "input_suffix": "b", **fields}),
        (lambda data: parse_llama_completion(data, request_id="r"), {"prompt": "a", **fields}),
        (lambda data: read_tokenize(data, request_id="r"), fields),
        (read_detokenize, fields),
    ):
        assert "\n" not in problem(parse, body)


def problem(parse: Any, body: dict[str, Any]) -> str:
    try:
        parse(json.dumps(body).encode())
    except RequestError as error:
        return error.message
    return ""
