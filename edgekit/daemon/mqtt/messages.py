"""Every message of the MQTT API; `docs/mqtt.md` is the reference.

`edgekit.daemon.api` parses the chat in a request, as for HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
from edgekit.daemon.api.json_body import parse_object
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.mqtt.coalesce import DeltaBatch
from edgekit.daemon.readings import Load, Sensors
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.types import Finished
from edgekit.runners import Rejected

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
    "state",
    "status",
]

CONTENT_TYPE = "application/json"
PROTOCOL = 1
"""Protocol version; it changes only when an old client would misread a message."""

MAX_ID_CHARS = 128
_YEAR_S = 366 * 86_400
_ENVELOPE_FIELDS = ("id", "reply_to", "deadline_s")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The protocol's own fields of a request or a cancellation.

    Attributes:
        id: The caller's id for the request; None if not set.
        reply_to: The response topic in the payload, not validated; for callers without MQTT 5 properties.
        deadline_s: Deadline in seconds.
        stream: Whether to send deltas.
        body: The rest: the body of a chat or a completion.
    """

    id: str | None
    reply_to: str | None
    deadline_s: float | None
    stream: bool
    body: dict[str, Any]

    def digest(self) -> bytes:
        """Hash of the body: distinguishes a repeated request from a new one with the same id."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).digest()


def read_object(payload: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RequestError: The payload is not UTF-8, or not a JSON object.
    """
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise RequestError("the payload is not UTF-8", hint="send JSON encoded as UTF-8") from exc
    return parse_object(text, "the payload")


def read_envelope(body: Mapping[str, Any]) -> Envelope:
    """Separate the protocol's own fields from the body of a request.

    Raises:
        RequestError: A field has the wrong type or is out of range.
    """
    return Envelope(
        id=_read_id(body.get("id")),
        reply_to=_read_string("reply_to", body.get("reply_to")),
        deadline_s=_read_seconds(body.get("deadline_s")),
        stream=body.get("stream") is True,
        body={name: value for name, value in body.items() if name not in _ENVELOPE_FIELDS},
    )


def clean_id(text: str) -> str | None:
    """Return `text` if it is a valid id, else None."""
    return text if 0 < len(text) <= MAX_ID_CHARS and text.isprintable() else None


def encode(message: Mapping[str, Any]) -> bytes:
    """Encode as compact UTF-8 JSON; a lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def delta(request_id: str, attempt: int, seq: int, batch: DeltaBatch, *, logprobs: bool = False) -> dict[str, Any]:
    """Return a delta of a streamed answer.

    Args:
        request_id: The request's id.
        attempt: Number of the attempt to answer it.
        seq: Number of this message.
        batch: Its content; `text` is present even if it is empty.
        logprobs: Whether the caller requested log probabilities.
    """
    message: dict[str, Any] = {"type": "delta", "id": request_id, "attempt": attempt, "seq": seq, "text": batch.text}
    if batch.index:
        message["index"] = batch.index
    if batch.reasoning:
        message["reasoning_content"] = batch.reasoning
    if batch.calls:
        message["tool_calls"] = [call_delta_body(call) for call in batch.calls]
    if logprobs:
        message["logprobs"] = logprobs_body(batch.logprobs)
    if batch.reason is not None:
        message["finish_reason"] = batch.reason
    return message


def final(
    request_id: str,
    attempt: int,
    seq: int,
    answers: CollectedReply,
    finish: Finished,
    *,
    model: str,
    logprobs: bool = False,
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the full answer, or all `n` of them: the last message of a request.

    Args:
        request_id: The request's id.
        attempt: Number of the attempt to answer it.
        seq: One more than the last delta's; 0 without deltas.
        answers: The full answers, so that a caller that missed a delta loses nothing.
        finish: Finish reasons, usage and timings.
        model: The model's name.
        logprobs: Whether the caller requested log probabilities.
        ignored: Names of fields of the request that were ignored.
    """
    choices = []
    for index, (answer, reason) in enumerate(zip(answers.answers, reasons(finish, len(answers.answers)), strict=True)):
        choice: dict[str, Any] = {"index": index, "message": message_body(answer), "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = logprobs_body(answer.logprobs)
        choices.append(choice)
    message: dict[str, Any] = {
        "type": "final",
        "id": request_id,
        "attempt": attempt,
        "seq": seq,
        **{name: value for name, value in choices[0].items() if name != "index"},
        "model": model,
        "usage": usage_body(finish.usage),
        "timings": timings_body(finish.timings, finish.usage),
    }
    if ignored:
        message["ignored"] = list(ignored)
    return message if len(choices) == 1 else {**message, "choices": choices}


def error(request_id: str | None, attempt: int, problem: EdgekitError) -> dict[str, Any]:
    """Return the last message of a failed request."""
    return {"type": "error", "id": request_id, "attempt": attempt, **error_body(problem)}


def refused(request_id: str | None, problem: EdgekitError) -> dict[str, Any]:
    """Return the message for the refused topic; it contains nothing of the request but its id."""
    return {"type": "refused", "id": request_id, **error_body(problem)}


def status(
    state: str,
    *,
    session: str,
    since: str,
    model: str,
    runner: str,
    rejected: Sequence[Rejected],
    version: str,
    device: Mapping[str, object] | None = None,
    engine: BuildState | None = None,
) -> dict[str, Any]:
    """Return a presence message.

    Args:
        state: `online` or `offline`.
        session: Session name, new for every connection; an `offline` counts only for its own session.
        since: When the connection was made, RFC 3339 in UTC.
        model: The model's name.
        runner: What runs it; empty if it is not loaded yet.
        rejected: Better runners that do not work on the device, the best first.
        version: edgekit's version.
        device: The board and its sensors; None leaves it out.
        engine: How far the engine is that the daemon builds; None leaves it out.
    """
    message: dict[str, Any] = {
        "type": "status",
        "state": state,
        "session": session,
        "since": since,
        "model": model,
        "runner": runner or None,
        "rejected_runners": [{"runner": one.name, "reason": one.reason} for one in rejected],
        "edgekit": version,
    }
    if engine is not None:
        message["engine"] = {"phase": engine.phase, "percent": engine.percent}
    if device is not None:
        message["device"] = dict(device)
    return message


def state(load: Load, sensors: Sensors, *, session: str, model: str, runner: str) -> dict[str, Any]:
    """Return the message for the state topic.

    Args:
        load: The load.
        sensors: Memory and sensors.
        session: Session name, as in the presence message.
        model: The model's name.
        runner: What runs it; empty if it is not loaded yet.
    """
    rate = load.decode_tokens_per_s
    return {
        "type": "state",
        "session": session,
        "state": load.state,
        "model": model,
        "runner": runner or None,
        "load": round(load.share, 3),
        "running": load.running,
        "queue": load.waiting,
        "credits": load.credits,
        "decode_tokens_per_s": None if rate is None else round(rate, 2),
        "completion_tokens_total": load.completion_tokens,
        **asdict(sensors),
    }


def info(
    *,
    device: str,
    model: str,
    context_length: int,
    version: str,
    topics: Mapping[str, str],
    max_payload_bytes: int,
    user_required: bool = False,
) -> dict[str, Any]:
    """Return the device's info message."""
    return {
        "type": "info",
        "protocol": PROTOCOL,
        "device": device,
        "edgekit": version,
        "model": {"id": model, "context_length": context_length},
        "topics": dict(topics),
        "max_payload_bytes": max_payload_bytes,
        "user_required": user_required,
    }


def _read_id(value: object) -> str | None:
    text = _read_string("id", value)
    if text is not None and clean_id(text) is None:
        raise RequestError(f"`id` must have 1 to {MAX_ID_CHARS} printable characters", param="id")
    return text


def _read_string(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"`{name}` must be a string", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(f"`{name}` contains a lone surrogate", param=name) from exc
    return value


def _read_seconds(value: object) -> float | None:
    if value is None:
        return None
    # The comparison, unlike float(), takes integers of any length; NaN fails it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_YEAR_S <= value <= _YEAR_S:
        raise RequestError("`deadline_s` must be a number of seconds, at most one year", param="deadline_s")
    return float(value)
