"""Shared by OpenAI's chat and completion replies: the model check, server-sent events, the end of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from edgekit.daemon.api import ReplyOptions, check_model, reasons, timings_body, usage_body
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.errors import openai_error
from edgekit.daemon.http.json_line import json_line
from edgekit.errors import EdgekitError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Finished, FinishReason

if TYPE_CHECKING:
    from edgekit.daemon.api.openai_types import (
        ChatChunk,
        ChatChunkChoice,
        CompletionChoice,
        CompletionChunk,
        Costs,
        ReplyHead,
    )

    Chunk = ChatChunk | CompletionChunk

__all__ = ["OpenAIReply", "event"]


Choice = TypeVar("Choice", "ChatChunkChoice", "CompletionChoice")


class OpenAIReply(Generic[Choice]):
    """The parts of a reply that chats and completions have in common.

    Args:
        context: The request's id, and the served model.
        requests: The requests: one for each prompt.
        options: The reply's format.
        prefix: Prefix of the reply's id.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        context: RequestContext,
        requests: Sequence[ChatRequest],
        options: ReplyOptions,
        *,
        prefix: str,
    ) -> None:
        check_model(options.model, context.model)
        self.requests = requests
        self.request = requests[0]
        self.choices = len(requests) * requests[0].n
        self.stream = options.stream
        self._options = options
        self._finished: set[int] = set()
        self.head: ReplyHead = {
            "id": f"{prefix}-{context.id}",
            "created": int(time.time()),
            "model": context.model.name,
        }

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
        return event(self._chunk([self.last_choice(choice.index, choice.reason)]))

    def finish(self, finished: Finished) -> bytes:
        """Return the other choices' finish reasons, the last with the timings; usage if requested; and `[DONE]`."""
        ends = enumerate(reasons(finished, self.choices))
        # At least one chunk: the choice that finishes last has no `ChoiceFinished`.
        chunks: list[Chunk] = [
            self._chunk([self.last_choice(index, reason)]) for index, reason in ends if index not in self._finished
        ]
        chunks[-1]["timings"] = timings_body(finished.timings, finished.usage)
        if self._options.include_usage:
            chunks.append(self._chunk([]))
            chunks[-1]["usage"] = usage_body(finished.usage)
        return b"".join(map(event, chunks)) + b"data: [DONE]\n\n"

    def last_choice(self, index: int, reason: FinishReason) -> Choice:
        """Return the choice in the last chunk of a choice's stream."""
        raise NotImplementedError

    def chunk(self, choices: list[Choice]) -> Chunk:
        """Return a chunk of a stream."""
        raise NotImplementedError

    def choice_event(self, choice: Choice) -> bytes:
        """Return the event of a part of one choice."""
        return event(self._chunk([choice]))

    def costs(self, finished: Finished) -> Costs:
        """Return the end of a full reply."""
        return {
            "usage": usage_body(finished.usage),
            "timings": timings_body(finished.timings, finished.usage),
        }

    def _chunk(self, choices: list[Choice]) -> Chunk:
        chunk = self.chunk(choices)
        if self._options.include_usage:
            chunk["usage"] = None
        return chunk


def event(data: Mapping[str, object]) -> bytes:
    """Return one server-sent event."""
    return f"data: {json_line(data)}\n\n".encode()
