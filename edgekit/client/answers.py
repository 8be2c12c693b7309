"""The parts of requests and replies that HTTP and MQTT share: bodies out, events and errors in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from edgekit.errors import EdgekitError, RequestError, UnavailableError
from edgekit.generation.message_json import message_body
from edgekit.generation.types import Finished, FinishReason, Message, ToolCallDelta
from edgekit.generation.usage import Timings, Usage

__all__ = ["chat_body", "read_calls", "read_error", "read_finish", "unreadable"]


def chat_body(messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a streaming chat-completions body.

    Args:
        messages: The chat.
        options: Further fields, such as `max_tokens` or `temperature`; None omits a field.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return {"messages": [message_body(item) for item in messages], "stream": True, **given}


def read_calls(value: object, seq: int) -> list[ToolCallDelta]:
    """Parse the `tool_calls` of a delta or of a complete message; what is not in their form is left out.

    Args:
        value: The list; None for none.
        seq: Sequence number of the first.
    """
    calls: list[ToolCallDelta] = []
    for position, item in enumerate(value if isinstance(value, list) else ()):
        function = _inner(item, "function") if isinstance(item, Mapping) else {}
        if not function:
            continue
        number = item.get("index")
        calls.append(
            ToolCallDelta(
                seq + len(calls),
                number if isinstance(number, int) else position,
                str(function.get("arguments") or ""),
                id=str(item["id"]) if item.get("id") else None,
                name=str(function["name"]) if function.get("name") else None,
            )
        )
    return calls


def read_finish(reason: object, usage: object, timings: object) -> Finished:
    """Parse the end of a reply; missing figures count as 0."""
    known = reason if reason in get_args(FinishReason) else "stop"
    tokens = usage if isinstance(usage, Mapping) else {}
    seconds = timings if isinstance(timings, Mapping) else {}
    prompt, completion = (_inner(tokens, f"{part}_tokens_details") for part in ("prompt", "completion"))
    return Finished(
        cast("FinishReason", known),
        Usage(
            int(_number(tokens.get("prompt_tokens"))),
            int(_number(tokens.get("completion_tokens"))),
            cached_tokens=int(_number(prompt.get("cached_tokens"))),
            accepted_tokens=int(_number(completion.get("accepted_prediction_tokens"))),
            rejected_tokens=int(_number(completion.get("rejected_prediction_tokens"))),
            left_out_messages=int(_number(seconds.get("left_out_messages"))),
        ),
        Timings(
            _number(seconds.get("queue_s")),
            _number(seconds.get("prefill_s")),
            _number(seconds.get("decode_s")),
            slowest_token_s=_number(seconds.get("slowest_token_s")),
            steps=int(_number(seconds.get("steps"))),
            kv_bytes=int(_number(seconds.get("kv_bytes"))),
            prefill_j=_number(seconds["prefill_j"]) if "prefill_j" in seconds else None,
            decode_j=_number(seconds["decode_j"]) if "decode_j" in seconds else None,
        ),
    )


def read_error(body: object) -> EdgekitError:
    """Parse a reply's `error` object."""
    if not isinstance(body, Mapping):
        return unreadable("an error without a description")
    message = str(body.get("message") or "the daemon refused the request")
    hint = str(body["hint"]) if body.get("hint") else None
    # Over HTTP the message repeats the hint, for clients that show nothing else.
    message = message.removesuffix(f" ({hint})")
    code = str(body.get("code") or EdgekitError.code)
    if body.get("retry_after_s") is not None:
        return UnavailableError(message, hint=hint, code=code, retry_after_s=_number(body["retry_after_s"]))
    return RequestError(message, hint=hint, code=code, param=str(body["param"]) if body.get("param") else None)


def unreadable(what: str) -> EdgekitError:
    """Return the error for a reply that violates the protocol."""
    return EdgekitError(
        f"the daemon's reply cannot be read: {what}",
        hint="check that an edgekit daemon runs there",
        code="bad_reply",
    )


def _inner(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
