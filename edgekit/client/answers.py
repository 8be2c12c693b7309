"""What the replies of both doors have in common, read back into events and errors. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import Finish, FinishReason, Message, Timings, Usage

__all__ = ["chat_body", "read_error", "read_finish", "unreadable"]


def chat_body(messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a streaming chat-completions body.

    Args:
        messages: The chat.
        options: Further fields, `max_tokens` or `temperature` say; those that are None are left out.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return {"messages": [{"role": item.role, "content": item.content} for item in messages], "stream": True, **given}


def read_finish(reason: object, usage: object, timings: object) -> Finish:
    """Return the Finish that a reply describes; what it leaves out counts as 0."""
    known = reason if reason in get_args(FinishReason) else "stop"
    tokens = usage if isinstance(usage, Mapping) else {}
    seconds = timings if isinstance(timings, Mapping) else {}
    prompt, completion = (_inner(tokens, f"{part}_tokens_details") for part in ("prompt", "completion"))
    return Finish(
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
        ),
    )


def read_error(body: object) -> EdgekitError:
    """Return the error that a reply's `error` object describes."""
    if not isinstance(body, Mapping):
        return unreadable("an error without a description")
    retry = body.get("retry_after_s")
    return RequestError(
        str(body.get("message") or "the daemon refused the request"),
        hint=str(body["hint"]) if body.get("hint") else None,
        code=str(body.get("code") or EdgekitError.code),
        param=str(body["param"]) if body.get("param") else None,
        retry_after_s=_number(retry) if retry is not None else None,
    )


def unreadable(what: str) -> EdgekitError:
    """Return the error for a reply that is not the protocol's."""
    return EdgekitError(
        f"the daemon's reply cannot be read: {what}",
        hint="is it an edgekit daemon that answers there?",
        code="bad_reply",
    )


def _inner(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
