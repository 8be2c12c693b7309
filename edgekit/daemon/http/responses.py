"""The reply to `POST /v1/responses`: a response object, or its stream of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from edgekit.daemon.api import CollectedReply, timings_body
from edgekit.daemon.api.response_items import Item, call_item, message_item, new_id, reasoning_item, text_part
from edgekit.daemon.api.response_request import ResponseCall
from edgekit.daemon.http.errors import error_text
from edgekit.daemon.http.json_line import json_line
from edgekit.errors import EdgekitError, RequestError, UnavailableError
from edgekit.generation.types import (
    ChatRequest,
    ChoiceFinished,
    Delta,
    Finished,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from edgekit.generation.usage import Usage

__all__ = ["ResponseReply"]

Kind = Literal["reasoning", "message", "function_call"]
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class ResponseReply:
    """The reply to one request.

    Args:
        call: The parsed body.
        model: Name of the served model.
        store: Keeps the complete response.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, call: ResponseCall, model: str, store: Callable[[dict[str, Any]], None]) -> None:
        self.requests: Sequence[ChatRequest] = (call.request,)
        self.stream = call.options.stream
        self._call = call
        self._store = store
        self._head = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **call.settings,
        }
        self._number = 0
        self._output: list[Item] = []
        self._open: _OpenItem | None = None

    def accepted(self, prompt_tokens: int) -> None:
        """Do nothing: the counts are in the end."""

    def full(self, reply: CollectedReply, finished: Finished) -> dict[str, Any]:
        """Return the complete response."""
        answer, calls = reply.answers[0], reply.answers[0].tool_calls
        items = [self._new("reasoning", answer.reasoning)] if answer.reasoning else []
        if answer.text or not calls:
            items.append(self._new("message", answer.text, logprobs=answer.logprobs))
        items += [self._new("function_call", call=call) for call in calls]
        status = _status(finished)
        for item in items:
            self._output.append(item.body(status if item is items[-1] else "completed"))
        return self._complete(finished)

    def start(self) -> bytes:
        """Return the two events before the answer."""
        body = self._body("in_progress", [])
        return self._event("response.created", response=body) + self._event("response.in_progress", response=body)

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return the events of a delta; another kind of output than before ends an item and begins the next."""
        if isinstance(delta, ToolCallDelta):
            begun = b""
            if delta.name is not None:
                begun = self._close() + self._begin("function_call", call=ToolCall(delta.id or "", delta.name, ""))
            return begun + (self._add(delta.arguments) if delta.arguments else b"")
        if not (delta.text or delta.logprobs):
            return b""
        kind: Kind = "reasoning" if delta.reasoning else "message"
        begun = b"" if self._open and self._open.kind == kind else self._close() + self._begin(kind)
        return begun + self._add(delta.text, delta.logprobs)

    def choice_finished(self, choice: ChoiceFinished) -> bytes:  # noqa: ARG002
        """Return nothing: there is one choice."""
        return b""

    def keep_alive(self) -> bytes:
        """Return a comment, which readers of server-sent events skip."""
        return b": keep-alive\n\n"

    def finish(self, finished: Finished) -> bytes:
        """Return the end of the last item, and the complete response."""
        begun = b"" if self._output or self._open else self._begin("message")
        ended = begun + self._close(_status(finished))
        body = self._complete(finished)
        return ended + self._event(f"response.{body['status']}", response=body)

    def failure(self, error: EdgekitError) -> bytes:
        """Return the event of a failed response."""
        ended = self._close("incomplete")
        problem = {"code": _error_code(error), "message": error_text(error), "type": error.code}
        return ended + self._event("response.failed", response=self._body("failed", self._output, error=problem))

    # Items.

    def _new(
        self,
        kind: Kind,
        text: str = "",
        *,
        logprobs: Sequence[TokenLogprob] = (),
        call: ToolCall | None = None,
    ) -> _OpenItem:
        item = _OpenItem(kind, self._call, new_id(_PREFIXES[kind]), len(self._output), call)
        item.add(text if call is None else call.arguments, logprobs)
        return item

    def _begin(self, kind: Kind, *, call: ToolCall | None = None) -> bytes:
        self._open = item = self._new(kind, call=call)
        added = self._event(
            "response.output_item.added", output_index=item.index, item=item.body("in_progress", begun=True)
        )
        if item.part is None:
            return added
        return added + self._event(f"response.{item.part}.added", **item.place(), part=item.part_body(begun=True))

    def _add(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        item = self._open
        if item is None:
            return b""  # impossible: a delta belongs to an item
        item.add(text, logprobs)
        extra = {"logprobs": text_part("", logprobs)["logprobs"]} if item.kind == "message" else {}
        return self._event(f"response.{item.name}.delta", **item.place(), delta=text, **extra)

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> bytes:
        """End the item that is open."""
        item, self._open = self._open, None
        if item is None:
            return b""
        part = item.part_body()
        done: dict[str, Any] = {"text": item.text}
        if item.kind == "message":
            done["logprobs"] = part["logprobs"]
        elif item.kind == "function_call":
            done = {"name": item.call.name if item.call else "", "arguments": item.text}
        events = self._event(f"response.{item.name}.done", **item.place(), **done)
        if item.part is not None:
            events += self._event(f"response.{item.part}.done", **item.place(), part=part)
        self._output.append(item.body(status))
        return events + self._event("response.output_item.done", output_index=item.index, item=self._output[-1])

    # Responses.

    def _complete(self, finished: Finished) -> dict[str, Any]:
        body = self._body(_status(finished), self._output, usage=_usage(finished.usage))
        if body["status"] == "completed":
            body["completed_at"] = int(time.time())
        else:
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        body["timings"] = timings_body(finished.timings, finished.usage)
        if self._call.store and finished.reason != "cancelled":
            self._store(body)
        return body

    def _body(
        self,
        status: str,
        output: Sequence[Item],
        *,
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "completed_at": None,
            "error": error,
            "incomplete_details": None,
            "output": [*output],
            "usage": usage,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json_line(body)}\n\n".encode()


class _OpenItem:
    """An item of the answer, as far as it has been generated.

    Attributes:
        kind: Its type.
        name: The name of its deltas in events.
        part: The name of its part in events; None if it has none.
        text: Its text, or a call's arguments.
    """

    def __init__(self, kind: Kind, options: ResponseCall, item_id: str, index: int, call: ToolCall | None) -> None:
        self.kind = kind
        self.index = index
        self.call = call
        self._id = item_id
        self._options = options
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.part: str | None = "content_part"
        self.name = "output_text"
        if kind == "function_call":
            self.name, self.part = "function_call_arguments", None
        elif kind == "reasoning":
            self.name = "reasoning_text"
            if options.summary:
                self.name, self.part = "reasoning_summary_text", "reasoning_summary_part"

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._texts.append(text)
        self._logprobs += logprobs

    def place(self) -> dict[str, Any]:
        """Return the fields that say in events where it is."""
        place: dict[str, Any] = {"item_id": self._id, "output_index": self.index}
        if self.part is not None:
            place["content_index" if self.part == "content_part" else "summary_index"] = 0
        return place

    def part_body(self, *, begun: bool = False) -> Item:
        """Return its part; `begun` leaves it empty."""
        text = "" if begun else self.text
        if self.kind == "message":
            return text_part(text, None if begun else self._logprobs)
        return {"type": "summary_text" if self._options.summary else "reasoning_text", "text": text}

    def body(self, status: Literal["in_progress", "completed", "incomplete"], *, begun: bool = False) -> Item:
        """Return the item; `begun` leaves it empty."""
        if self.call is not None:
            return call_item(self._id, ToolCall(self.call.id, self.call.name, "" if begun else self.text), status)
        text = None if begun else self.text
        if self.kind == "message":
            return message_item(self._id, text, status, self._logprobs)
        return reasoning_item(self._id, text, status, summary=self._options.summary, sealed=self._options.sealed)


def _status(finished: Finished) -> Literal["completed", "incomplete"]:
    return "completed" if finished.reason in {"stop", "tool_calls"} else "incomplete"


def _error_code(error: EdgekitError) -> str:
    """Return the API's code of an error; `type` has edgekit's own."""
    if error.code == "overloaded":
        return "rate_limit_exceeded"
    if isinstance(error, RequestError) and not isinstance(error, UnavailableError):
        return "invalid_prompt"
    return "server_error"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
