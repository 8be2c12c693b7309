"""What both doors answer with, in the OpenAI API's shapes: messages, calls, usage, errors. It knows no transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.daemon.wire.gather import Written
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import Finish, FinishReason, Timings, TokenLogprob, ToolCallDelta, Usage

__all__ = [
    "call_delta_body",
    "clamped",
    "error_body",
    "error_type",
    "logprobs_body",
    "message_body",
    "reasons",
    "timings_body",
    "token_body",
    "token_text",
    "usage_body",
]

# JSON has no infinity; the OpenAI API says this instead.
_UNLIKELY = -9999.0


def message_body(answer: Written) -> dict[str, Any]:
    """Return an assistant's message; `content` is null if there is nothing but calls."""
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


def call_delta_body(piece: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a call; the first alone carries `id`, `type` and the function's name."""
    function: dict[str, Any] = {"arguments": piece.arguments}
    body: dict[str, Any] = {"index": piece.number, "function": function}
    if piece.name is not None:
        body = {"index": piece.number, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}}
    return body


def logprobs_body(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return a chat's `logprobs` object."""
    content = [
        {
            **token_body(item.data, item.logprob),
            "top_logprobs": [token_body(data, value) for _, data, value in item.top],
        }
        for item in tokens
    ]
    return {"content": content, "refusal": None}


def token_body(data: bytes, logprob: float | None) -> dict[str, Any]:
    """Return one token; `bytes` is exact, `token` shows what is no whole character as U+FFFD."""
    return {
        "token": data.decode(errors="replace"),
        "logprob": clamped(logprob),
        "bytes": list(data),
    }


def clamped(logprob: float | None) -> float | None:
    """Return a log probability as JSON can say it."""
    return None if logprob is None else max(logprob, _UNLIKELY)


def token_text(data: bytes) -> str:
    """Return a token's text, or the older completions API's spelling of bytes that are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def reasons(finish: Finish, n: int) -> tuple[FinishReason, ...]:
    """Return why each of `n` answers ended; one that never began ended as the first did."""
    return finish.reasons[:n] + (finish.reason,) * (n - len(finish.reasons))


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the `usage` object of the OpenAI API."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.rejected_tokens,
        },
    }


def timings_body(timings: Timings, usage: Usage) -> dict[str, float]:
    """Return the `timings` object, an extension: seconds, tokens per second, and what the answer took."""
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
        "steps": timings.steps,
        "cached_tokens": usage.cached_tokens,
        "drafted_tokens": usage.accepted_tokens + usage.rejected_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "kv_bytes": timings.kv_bytes,
        "left_out_messages": usage.left_out_messages,
    }


def error_type(error: EdgekitError) -> str:
    """Return the OpenAI API's coarse class of an error; `code` is the precise one."""
    if error.code == "overloaded":
        return "rate_limit_error"
    if isinstance(error, RequestError) and error.code not in {"deadline_exceeded", "not_ready", "shutting_down"}:
        return "invalid_request_error"
    return "server_error"


def error_body(error: EdgekitError) -> dict[str, Any]:
    """Return `{"error": {…}}` with message, type, code, param and hint, as both doors send it."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": error_type(error),
        "code": error.code,
        "param": error.param if isinstance(error, RequestError) else None,
        "hint": error.hint,
    }
    if isinstance(error, RequestError) and error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return {"error": body}
