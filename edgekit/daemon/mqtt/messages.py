"""Every message the MQTT door reads or writes; `docs/mqtt.md` is their reference.

This file knows JSON and the protocol. It knows neither the broker nor the scheduler; the chat inside a request
is read by `edgekit.daemon.wire`, as for HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edgekit.daemon.mqtt.pieces import Batch
from edgekit.daemon.wire import (
    Gathered,
    call_delta_body,
    error_body,
    logprobs_body,
    message_body,
    reasons,
    timings_body,
    usage_body,
)
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import Finish

__all__ = [
    "CONTENT_TYPE",
    "MAX_ID_CHARS",
    "PROTOCOL",
    "Envelope",
    "clean_id",
    "delta",
    "encode",
    "error",
    "final",
    "info",
    "read_envelope",
    "read_object",
    "refused",
    "status",
]

CONTENT_TYPE = "application/json"
PROTOCOL = 1
"""Version of this protocol; it changes only when an old client would misread a message."""

MAX_ID_CHARS = 128
_YEAR_S = 366 * 86_400
_ENVELOPE_FIELDS = ("id", "reply_to", "deadline_s")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the door itself reads of a request or a cancellation.

    Attributes:
        id: The caller's name for the request; None if it gave none.
        reply_to: The payload's response topic, unchecked; for callers without MQTT 5 properties.
        deadline_s: Seconds the caller is willing to wait.
        stream: Whether deltas are wanted.
        body: The body of a chat, or of a completion, that remains.
    """

    id: str | None
    reply_to: str | None
    deadline_s: float | None
    stream: bool
    body: dict[str, Any]

    def digest(self) -> bytes:
        """Hash of the body: tells a repeated request from a new one that reuses an id."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).digest()


def read_object(payload: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestError: Not UTF-8, or not a JSON object.
    """
    try:
        body = json.loads(payload.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise RequestError("the payload is not UTF-8", hint="send JSON encoded as UTF-8") from exc
    except RecursionError as exc:
        raise RequestError("the payload is nested too deeply") from exc
    except ValueError as exc:
        raise RequestError(f"the payload is not valid JSON: {exc}", hint='send {"messages": […]}') from exc
    if not isinstance(body, dict):
        raise RequestError("the payload must be a JSON object", hint='send {"messages": […]}')
    return body


def read_envelope(body: Mapping[str, Any]) -> Envelope:
    """Take the door's own fields out of a request.

    Raises:
        RequestError: A field of the wrong type, or out of its range.
    """
    return Envelope(
        id=_read_id(body.get("id")),
        reply_to=_read_text("reply_to", body.get("reply_to")),
        deadline_s=_read_seconds(body.get("deadline_s")),
        stream=body.get("stream") is True,
        body={name: value for name, value in body.items() if name not in _ENVELOPE_FIELDS},
    )


def clean_id(text: str) -> str | None:
    """Return `text` if it can serve as an id, else None."""
    return text if 0 < len(text) <= MAX_ID_CHARS and text.isprintable() else None


def encode(message: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def delta(request_id: str, seq: int, batch: Batch, *, logprobs: bool = False) -> dict[str, Any]:
    """A piece of a streamed answer.

    Args:
        request_id: The request's id.
        seq: Number of this message.
        batch: The text, and pieces of calls that follow it; the text is there even if it is empty.
        logprobs: Whether the caller asked for them.
    """
    message: dict[str, Any] = {"type": "delta", "id": request_id, "seq": seq, "text": batch.text}
    if batch.index:
        message["index"] = batch.index
    if batch.reasoning:
        message["reasoning_content"] = batch.reasoning
    if batch.calls:
        message["tool_calls"] = [call_delta_body(piece) for piece in batch.calls]
    if logprobs:
        message["logprobs"] = logprobs_body(batch.logprobs)
    if batch.reason is not None:
        message["finish_reason"] = batch.reason
    return message


def final(
    request_id: str, seq: int, answers: Gathered, finish: Finish, model: str, *, logprobs: bool = False
) -> dict[str, Any]:
    """The whole answer, or all of them; the last message of a request.

    Args:
        request_id: The request's id.
        seq: The number after the last delta's; 0 if there was none.
        answers: Everything, so that a caller that missed a delta has lost nothing.
        finish: Why it ended, and what it cost.
        model: The name of the model that answered.
        logprobs: Whether the caller asked for them.
    """
    choices = []
    for index, (answer, reason) in enumerate(zip(answers.answers, reasons(finish, len(answers.answers)), strict=True)):
        choice: dict[str, Any] = {"index": index, "message": message_body(answer), "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = logprobs_body(answer.logprobs)
        choices.append(choice)
    message = {
        "type": "final",
        "id": request_id,
        "seq": seq,
        **{name: value for name, value in choices[0].items() if name != "index"},
        "model": model,
        "usage": usage_body(finish.usage),
        "timings": timings_body(finish.timings, finish.usage),
    }
    return message if len(choices) == 1 else {**message, "choices": choices}


def error(request_id: str | None, problem: EdgekitError) -> dict[str, Any]:
    """A request failed; the last message of it."""
    return {"type": "error", "id": request_id, **error_body(problem)}


def refused(request_id: str | None, problem: EdgekitError) -> dict[str, Any]:
    """A note, to nobody in particular, about a request that cannot be answered; it repeats nothing of the request."""
    return {**error(request_id, problem), "type": "refused"}


def status(state: str, *, session: str, since: str, model: str, version: str) -> dict[str, Any]:
    """Presence.

    Args:
        state: `online` or `offline`.
        session: Differs for every connection; an `offline` counts only for the session that it names.
        since: When this connection was made, RFC 3339 in UTC.
        model: What is served.
        version: edgekit's.
    """
    return {
        "type": "status",
        "state": state,
        "session": session,
        "since": since,
        "model": model,
        "edgekit": version,
    }


def info(
    *, device: str, model: str, context_length: int, version: str, topics: Mapping[str, str], max_payload_bytes: int
) -> dict[str, Any]:
    """The device's card."""
    return {
        "type": "info",
        "protocol": PROTOCOL,
        "device": device,
        "edgekit": version,
        "model": {"id": model, "context_length": context_length},
        "topics": dict(topics),
        "max_payload_bytes": max_payload_bytes,
    }


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_id(value: object) -> str | None:
    text = _read_text("id", value)
    if text is not None and clean_id(text) is None:
        raise RequestError(f"`id` must have 1 to {MAX_ID_CHARS} printable characters", param="id")
    return text


def _read_text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"`{name}` must be a string", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(f"`{name}` holds half of a surrogate pair", param=name) from exc
    return value


def _read_seconds(value: object) -> float | None:
    if value is None:
        return None
    # The comparison, unlike float(), takes integers of any length; NaN fails it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_YEAR_S <= value <= _YEAR_S:
        raise RequestError("`deadline_s` must be a number of seconds, at most a year", param="deadline_s")
    return float(value)
