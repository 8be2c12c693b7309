"""Shared by OpenAI's chat and completion replies: the model check, server-sent events, the end of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from edgekit.daemon.api import ReplyOptions, check_model, reasons, timings_body, usage_body
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.errors import openai_error
from edgekit.daemon.http.json_line import json_line
from edgekit.errors import EdgekitError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Finished, FinishReason

__all__ = ["OpenAIReply", "event"]


class OpenAIReply:
    """The parts of a reply that chats and completions have in common.

    Args:
        context: The request's id, and the served model.
        requests: The requests: one for each prompt.
        options: The reply's format.
        prefix: Prefix of the reply's id.
        kind: `object` of a full reply.
        chunk_kind: `object` of a stream's chunks.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        context: RequestContext,
        requests: Sequence[ChatRequest],
        options: ReplyOptions,
        *,
        prefix: str,
        kind: str,
        chunk_kind: str,
    ) -> None:
        check_model(options.model, context.model)
        self.requests = requests
        self.request = requests[0]
        self.choices = len(requests) * requests[0].n
        self.stream = options.stream
        self._options = options
        self._kind = kind
        self._chunk_kind = chunk_kind
        self._finished: set[int] = set()
        self._head = {"id": f"{prefix}-{context.id}", "created": int(time.time()), "model": context.model.name}

    def accepted(self, prompt_tokens: int) -> None:
        """Do nothing: the counts are in the reply's end."""

    def keep_alive(self) -> bytes:
        """Return a comment, which readers of server-sent events skip."""
        return b": keep-alive\n\n"

    def failure(self, error: EdgekitError) -> bytes:
        """Return an error event, which OpenAI's clients raise."""
        return event(openai_error(error))

    def choice_finished(self, choice: ChoiceFinished) -> bytes:
        """Return the chunk with one choice's finish reason."""
        self._finished.add(choice.index)
        return event(self.chunk(self.last_choice(choice.index, choice.reason)))

    def finish(self, finished: Finished) -> bytes:
        """Return the other choices' finish reasons, the last with the timings; usage if requested; and `[DONE]`."""
        ends = enumerate(reasons(finished, self.choices))
        # At least one chunk: the choice that finishes last has no `ChoiceFinished`.
        chunks = [self.chunk(self.last_choice(index, reason)) for index, reason in ends if index not in self._finished]
        chunks[-1]["timings"] = timings_body(finished.timings, finished.usage)
        if self._options.include_usage:
            chunks.append({**self.chunk(), "usage": usage_body(finished.usage)})
        return b"".join(map(event, chunks)) + b"data: [DONE]\n\n"

    def last_choice(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return the choice in the last chunk of a choice's stream."""
        raise NotImplementedError

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk of a stream."""
        chunk = {**self._head, "object": self._chunk_kind, "choices": list(choices)}
        if self._options.include_usage:
            chunk["usage"] = None
        return chunk

    def body(self, choices: list[dict[str, Any]], finished: Finished) -> dict[str, Any]:
        """Return the body of a full reply."""
        return {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": usage_body(finished.usage),
            "timings": timings_body(finished.timings, finished.usage),
        }


def event(data: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"data: {json_line(data)}\n\n".encode()
