"""Response bodies in the OpenAI API's shapes, for both transports: messages, tool calls, usage, timings, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.daemon.api.collect import CollectedChoice
from edgekit.errors import EdgekitError, RequestError, UnavailableError
from edgekit.generation.types import Finished, FinishReason, TokenLogprob, ToolCallDelta
from edgekit.generation.usage import Timings, Usage

__all__ = [
    "call_delta_body",
    "clamped",
    "error_body",
    "logprobs_body",
    "message_body",
    "reasons",
    "timings_body",
    "token_text",
    "usage_body",
]

# JSON has no infinity; the OpenAI API uses this value instead.
_MIN_LOGPROB = -9999.0


def message_body(answer: CollectedChoice) -> dict[str, Any]:
    """Return an assistant message; `content` is null if there are only tool calls."""
    text, calls = answer.text, answer.tool_calls
    body: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if answer.reasoning:
        body["reasoning_content"] = answer.reasoning
    if calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return body


def call_delta_body(delta: ToolCallDelta) -> dict[str, Any]:
    """Return a tool call delta; only a call's first delta carries `id`, `type` and the function name."""
    function: dict[str, Any] = {"arguments": delta.arguments}
    body: dict[str, Any] = {"index": delta.number, "function": function}
    if delta.name is not None:
        body = {"index": delta.number, "id": delta.id, "type": "function", "function": {"name": delta.name, **function}}
    return body


def logprobs_body(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the `logprobs` object of a chat completion."""
    content = [
        {
            **_token_body(item.data, item.logprob),
            "top_logprobs": [_token_body(data, value) for _, data, value in item.top],
        }
        for item in tokens
    ]
    return {"content": content, "refusal": None}


def _token_body(data: bytes, logprob: float | None) -> dict[str, Any]:
    """Return one token; `bytes` is exact, `token` shows an incomplete character as U+FFFD."""
    return {
        "token": data.decode(errors="replace"),
        "logprob": clamped(logprob),
        "bytes": list(data),
    }


def clamped(logprob: float | None) -> float | None:
    """Return a log probability that JSON can represent."""
    return None if logprob is None else max(logprob, _MIN_LOGPROB)


def token_text(data: bytes) -> str:
    """Return a token's text; bytes that are not UTF-8 are spelled as the legacy completions API does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def reasons(finish: Finished, n: int) -> tuple[FinishReason, ...]:
    """Return the finish reason of each of `n` choices; a choice that never began ended as the first did."""
    return finish.reasons[:n] + (finish.reason,) * (n - len(finish.reasons))


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the `usage` object of the OpenAI API."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.rejected_tokens,
        },
    }


def timings_body(timings: Timings, usage: Usage) -> dict[str, float]:
    """Return the `timings` object, an extension: durations, speeds, and what the answer cost."""
    seconds = {
        "queue_s": timings.queue_s,
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
        "first_token_s": timings.first_token_s,
        "slowest_token_s": timings.slowest_token_s,
        **timings.as_rates(usage),
    }
    return {
        **{name: round(value, 6) for name, value in seconds.items()},
        **{name: round(value, 4) for name, value in timings.as_energy(usage).items()},
        "steps": timings.steps,
        "cached_tokens": usage.cached_tokens,
        "drafted_tokens": usage.accepted_tokens + usage.rejected_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "kv_bytes": timings.kv_bytes,
        "left_out_messages": usage.left_out_messages,
    }


def _error_type(error: EdgekitError) -> str:
    """Return the OpenAI API's error type, which is coarser than `code`."""
    if error.code in {"overloaded", "rate_limited", "too_many_attempts"}:
        return "rate_limit_error"
    # A missed deadline is HTTP's 504, a server error.
    if isinstance(error, RequestError) and error.code != "deadline_exceeded":
        return "invalid_request_error"
    return "server_error"


def error_body(error: EdgekitError) -> dict[str, Any]:
    """Return `{"error": {…}}` with message, type, code, param and hint, for both transports."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": _error_type(error),
        "code": error.code,
        "param": error.param if isinstance(error, RequestError) else None,
        "hint": error.hint,
    }
    if isinstance(error, UnavailableError):
        body["retry_after_s"] = error.retry_after_s
    return {"error": body}
