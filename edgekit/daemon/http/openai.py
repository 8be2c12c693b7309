"""What the two OpenAI dialects share: the model's name, server-sent events, and how a stream ends."""

from __future__ import annotations

import time
from typing import Any

from edgekit.daemon.http.endpoint import Asked
from edgekit.daemon.http.json_line import json_line
from edgekit.daemon.http.models import check_model
from edgekit.daemon.wire import WireOptions, error_body, reasons, timings_body, usage_body
from edgekit.errors import EdgekitError
from edgekit.generation.request import ChatRequest, Ended, Finish, FinishReason

__all__ = ["EVENT_STREAM", "OpenAIReply"]

EVENT_STREAM = "text/event-stream; charset=utf-8"


class OpenAIReply:
    """The parts of a reply that do not depend on what an answer is.

    Args:
        asked: The request's id, and the model.
        request: The request.
        options: What the caller wants of the reply.
        prefix: Of the reply's id.
        kind: What the reply calls itself.
        chunk_kind: What each piece of a stream calls itself.
    """

    content_type = EVENT_STREAM

    def __init__(
        self, asked: Asked, request: ChatRequest, options: WireOptions, *, prefix: str, kind: str, chunk_kind: str
    ) -> None:
        check_model(options.model, asked.model)
        self.request = request
        self.stream = options.stream
        self._options = options
        self._kind = kind
        self._chunk_kind = chunk_kind
        self._told: set[int] = set()
        self._head = {"id": f"{prefix}-{asked.id}", "created": int(time.time()), "model": asked.model.name}

    def pause(self) -> bytes:
        """A comment, which readers of server-sent events skip."""
        return b": keep-alive\n\n"

    def failure(self, error: EdgekitError) -> bytes:
        """An event that OpenAI's clients raise."""
        return event(error_body(error))

    def ended(self, answer: Ended) -> bytes:
        """One answer's reason, as soon as it is known."""
        self._told.add(answer.index)
        return event(self.chunk(self.closing(answer.index, answer.reason)))

    def end(self, finish: Finish) -> bytes:
        """The other answers' reasons, with what all took on the last; the counts, if asked for; and `[DONE]`."""
        ends = enumerate(reasons(finish, self.request.n))
        # There is one at least: `Ended` does not tell of the last.
        chunks = [self.chunk(self.closing(index, reason)) for index, reason in ends if index not in self._told]
        chunks[-1]["timings"] = timings_body(finish.timings, finish.usage)
        if self._options.include_usage:
            chunks.append({**self.chunk(), "usage": usage_body(finish.usage)})
        return b"".join(map(event, chunks)) + b"data: [DONE]\n\n"

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """The choice of a stream's last chunk for one answer."""
        raise NotImplementedError

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        """A piece of a stream."""
        chunk = {**self._head, "object": self._chunk_kind, "choices": list(choices)}
        if self._options.include_usage:
            chunk["usage"] = None
        return chunk

    def reply(self, choices: list[dict[str, Any]], finish: Finish) -> dict[str, Any]:
        """A reply in one piece."""
        return {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": usage_body(finish.usage),
            "timings": timings_body(finish.timings, finish.usage),
        }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(data)}\n\n".encode()
