from __future__ import annotations

import json

import pytest

from edgekit.client.answers import read_finish
from edgekit.daemon.api import (
    CollectedReply,
    call_delta_body,
    error_body,
    logprobs_body,
    message_body,
    reasons,
    timings_body,
    usage_body,
)
from edgekit.daemon.api.responses import token_text
from edgekit.errors import EdgekitError, RequestError, RunnerError, UnavailableError
from edgekit.generation.types import Delta, Finished, TokenLogprob, ToolCallDelta
from edgekit.generation.usage import Timings, Usage

USAGE = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4, accepted_tokens=3, rejected_tokens=2)


def test_errors_have_the_apis_shape() -> None:
    error = UnavailableError("full", hint="wait", code="overloaded", retry_after_s=2.0)
    assert error_body(error)["error"] == {
        "message": "full",
        "type": "rate_limit_error",
        "code": "overloaded",
        "param": None,
        "hint": "wait",
        "retry_after_s": 2.0,
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError("no"), "invalid_request_error"),
        (RequestError("late", code="deadline_exceeded"), "server_error"),
        (UnavailableError("full", code="overloaded", retry_after_s=1.0), "rate_limit_error"),
        (UnavailableError("loading", code="not_ready", retry_after_s=1.0), "server_error"),
        (UnavailableError("bye", code="shutting_down", retry_after_s=1.0), "server_error"),
        (RunnerError("broken"), "server_error"),
    ],
)
def test_the_error_type_follows_the_class_of_the_error(error: EdgekitError, expected: str) -> None:
    assert error_body(error)["error"]["type"] == expected


def test_usage_counts_cached_and_draft_tokens() -> None:
    assert usage_body(USAGE) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 3,
            "rejected_prediction_tokens": 2,
        },
    }


def test_timings_have_durations_speeds_and_counts() -> None:
    timings = Timings(queue_s=0.1, prefill_s=2.0, decode_s=0.5, slowest_token_s=0.25, steps=3, kv_bytes=4096)
    assert timings_body(timings, USAGE) == {
        "queue_s": 0.1,
        "prefill_s": 2.0,
        "decode_s": 0.5,
        "first_token_s": 2.1,
        "slowest_token_s": 0.25,
        "prompt_tokens_per_s": 3.0,
        "decode_tokens_per_s": 8.0,
        "steps": 3,
        "cached_tokens": 4,
        "drafted_tokens": 5,
        "accepted_tokens": 3,
        "kv_bytes": 4096,
        "left_out_messages": 0,
    }


def test_timings_have_the_energy_if_it_was_measured() -> None:
    body = timings_body(Timings(0.1, 2.0, 0.5, prefill_j=6.0, decode_j=1.25), USAGE)
    # Five tokens, of which the prefill yields the first.
    assert (body["prefill_j"], body["decode_j"], body["joules_per_token"]) == (6.0, 1.25, 0.3125)
    one = timings_body(Timings(0.1, 2.0, 0.0, prefill_j=6.0, decode_j=0.0), Usage(10, 1))
    assert (one["prefill_j"], one["decode_j"]) == (6.0, 0.0)
    assert "joules_per_token" not in one


def test_a_client_reads_the_energy_back() -> None:
    for timings in (Timings(0.1, 2.0, 0.5, prefill_j=6.0, decode_j=1.25), Timings(0.1, 2.0, 0.5)):
        assert read_finish("stop", usage_body(USAGE), timings_body(timings, USAGE)).timings == timings


def test_deltas_of_several_choices_are_collected_separately() -> None:
    answers = CollectedReply(2)
    one, other = TokenLogprob(1, b"a", -0.5), TokenLogprob(2, b"b", -1.5)
    for event in (
        Delta(0, "Hel", logprobs=(one,)),
        Delta(1, "Bon", index=1),
        Delta(2, "lo", logprobs=(other,)),
        ToolCallDelta(3, 0, "", id="c0", name="f", index=1),
        ToolCallDelta(4, 0, '{"a"', index=1),
        ToolCallDelta(5, 0, ": 1}", index=1),
        ToolCallDelta(6, 1, "{}", id="c1", name="g", index=1),
    ):
        answers.add(event)
    first, second = answers.answers
    assert (first.text, first.tool_calls, first.logprobs) == ("Hello", [], [one, other])
    assert message_body(second) == {
        "role": "assistant",
        "content": "Bon",
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_content_is_null_only_if_there_are_only_tool_calls() -> None:
    answers = CollectedReply(1)
    assert message_body(answers.answers[0]) == {"role": "assistant", "content": ""}
    answers.add(ToolCallDelta(0, 0, "{}", id="c", name="f"))
    assert message_body(answers.answers[0])["content"] is None


def test_only_the_first_delta_of_a_call_names_it() -> None:
    first = ToolCallDelta(0, 1, "", id="c", name="f")
    assert call_delta_body(first) == {
        "index": 1,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert call_delta_body(ToolCallDelta(1, 1, "{")) == {"index": 1, "function": {"arguments": "{"}}


def test_tokens_of_incomplete_characters_keep_their_bytes() -> None:
    half = TokenLogprob(7, "🗼".encode()[:2], -0.25, top=((7, "🗼".encode()[:2], -0.25), (8, b" a", float("-inf"))))
    body = logprobs_body([half])
    assert body["content"] == [
        {
            "token": "�",
            "logprob": -0.25,
            "bytes": [0xF0, 0x9F],
            "top_logprobs": [
                {"token": "�", "logprob": -0.25, "bytes": [0xF0, 0x9F]},
                {"token": " a", "logprob": -9999.0, "bytes": [32, 97]},
            ],
        }
    ]
    json.dumps(body, allow_nan=False)
    assert (token_text(half.data), token_text(b" a")) == ("bytes:\\xf0\\x9f", " a")


def test_a_choice_that_never_began_has_the_reason_of_the_first() -> None:
    cancelled = Finished("cancelled", Usage(1, 0), Timings(0, 0, 0))
    assert reasons(cancelled, 3) == ("cancelled",) * 3
    finish = Finished("stop", Usage(1, 0), Timings(0, 0, 0), reasons=("stop", "length"))
    assert reasons(finish, 2) == ("stop", "length")
