"""`POST /v1/messages` and `/v1/messages/count_tokens`: replies in the format of Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

from edgekit.daemon.api import CollectedReply, check_model
from edgekit.daemon.api.anthropic import AnthropicCall, parse_anthropic
from edgekit.daemon.api.call_arguments import repair_arguments
from edgekit.daemon.api.response_items import new_id
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.errors import error_response, error_text, http_status
from edgekit.daemon.http.json_line import json_line
from edgekit.errors import EdgekitError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Finished, ToolCallDelta
from edgekit.generation.usage import Usage

__all__ = ["count_dialect", "messages_dialect", "refusal"]

Block = Literal["text", "thinking", "tool_use"]

# Clients drop a thought without a signature from the history; nothing here checks it.
_SIGNATURE = "edgekit"

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def messages_dialect(body: bytes, context: RequestContext) -> MessagesReply:
    """Parse a body of `/v1/messages`."""
    call = parse_anthropic(body, request_id=context.id, client=context.client)
    check_model(call.model, context.model)
    return MessagesReply(call)


def count_dialect(body: bytes, context: RequestContext, count: Callable[[ChatRequest], int]) -> Response:
    """Parse a body of `/v1/messages/count_tokens`, and answer it.

    Args:
        body: The body.
        context: What else is known of the request.
        count: Returns the number of prompt tokens.
    """
    call = parse_anthropic(body, request_id=context.id, client=context.client, counting=True)
    check_model(call.model, context.model)
    return JSONResponse({"input_tokens": count(call.request)})


def refusal(error: EdgekitError) -> Response:
    """Return an error in Anthropic's format, with edgekit's `code` added."""
    return error_response(error, _error(error))


class MessagesReply:
    """The reply to `/v1/messages`.

    Args:
        call: The parsed body.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, call: AnthropicCall) -> None:
        self.requests: Sequence[ChatRequest] = (call.request,)
        self.stream = call.stream
        self._head: dict[str, Any] = {"id": new_id("msg"), "type": "message", "role": "assistant", "model": call.model}
        self._prompt_tokens = 0
        self._index = -1
        self._open: Block | None = None

    def accepted(self, prompt_tokens: int) -> None:
        """Take the number of prompt tokens, which a stream begins with."""
        self._prompt_tokens = prompt_tokens

    def full(self, reply: CollectedReply, finished: Finished) -> dict[str, Any]:
        """Return a message."""
        answer = reply.answers[0]
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": _SIGNATURE})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        # `input` is an object: the arguments of a call that was cut off are closed where they end.
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": repair_arguments(call.arguments) or {}}
            for call in answer.tool_calls
        ]
        return {**self._head, "content": content, **_end(finished), "usage": _usage(finished.usage)}

    def start(self) -> bytes:
        """Return the message without content."""
        usage = _usage(Usage(self._prompt_tokens, 0))
        message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=message) + _event("ping")

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return the events of a delta; another kind of output than before ends a block and begins the next."""
        if isinstance(delta, ToolCallDelta):
            begun = b""
            if delta.name is not None:
                begun = self._begin("tool_use", id=delta.id, name=delta.name, input={})
            fragment = delta.arguments
            return begun + (self._add(type="input_json_delta", partial_json=fragment) if fragment else b"")
        if not delta.text:
            return b""
        if delta.reasoning:
            begun = b"" if self._open == "thinking" else self._begin("thinking", thinking="", signature="")
            return begun + self._add(type="thinking_delta", thinking=delta.text)
        begun = b"" if self._open == "text" else self._begin("text", text="")
        return begun + self._add(type="text_delta", text=delta.text)

    def choice_finished(self, choice: ChoiceFinished) -> bytes:  # noqa: ARG002
        """Return nothing: there is one choice."""
        return b""

    def keep_alive(self) -> bytes:
        """Return a `ping`."""
        return _event("ping")

    def finish(self, finished: Finished) -> bytes:
        """Return the end of the last block, and of the message."""
        end = _event("message_delta", delta=_end(finished), usage=_usage(finished.usage))
        return self._close() + end + _event("message_stop")

    def failure(self, error: EdgekitError) -> bytes:
        """Return an error event, which Anthropic's clients raise."""
        return _event("error", **{name: value for name, value in _error(error).items() if name != "type"})

    def _begin(self, kind: Block, **fields: Any) -> bytes:
        closed = self._close()
        self._open = kind
        self._index += 1
        return closed + _event("content_block_start", index=self._index, content_block={"type": kind, **fields})

    def _add(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = self._add(type="signature_delta", signature=_SIGNATURE) if self._open == "thinking" else b""
        self._open = None
        return signed + _event("content_block_stop", index=self._index)


def _end(finished: Finished) -> dict[str, Any]:
    stop = finished.stops[0] if finished.stops else None
    if finished.reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finished.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return token counts; prompt tokens from the cache are counted apart from the others."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _error(error: EdgekitError) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(http_status(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": error_text(error), "code": error.code}}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json_line({'type': kind, **fields})}\n\n".encode()
