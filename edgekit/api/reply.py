"""What `Model.chat` and `Model.complete` return: a reply, or a stream of its deltas."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard

from edgekit.daemon.api.collect import CollectedReply
from edgekit.daemon.api.responses import message_body
from edgekit.errors import RequestError, RunnerError
from edgekit.generation.types import (
    Delta,
    Event,
    Failure,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from edgekit.generation.usage import Timings, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncStream", "Reply", "Stream"]

Submit = Callable[[Callable[[Event], None]], Callable[[], None]]
"""Submits a request with a receiver of its events, and returns what cancels it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        text: The answer, without reasoning and tool calls.
        reasoning: What the model thought before it answered; empty unless it is a reasoning model.
        tool_calls: The calls that the model asks for, in order.
        message: The answer as a message in the OpenAI API's form, to append to the conversation.
        finish_reason: `stop`, `length` (`max_tokens` or the context is used up), `tool_calls` or `cancelled`.
        usage: Token counts.
        timings: Seconds spent waiting, on the prompt and on decoding.
        logprobs: One entry per token if `logprobs` was asked for.
    """

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    message: dict[str, Any]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()

    def json(self) -> Any:
        """Parse the text as JSON, as `response_format` asked for it.

        Raises:
            RequestError: It is not JSON: no format was asked for, or `max_tokens` cut the answer off.
        """
        try:
            return json.loads(self.text)
        except ValueError as error:
            hint = "ask for JSON with `response_format`, and give the answer enough `max_tokens`"
            raise RequestError(f"the reply is not JSON: {error}", hint=hint) from error

    def __str__(self) -> str:
        """The text."""
        return self.text


class _OpenRequest:
    """A submitted request: collects its events into a reply, and cancels it."""

    def __init__(self) -> None:
        self._collected = CollectedReply()
        self._reply: Reply | None = None
        self._over = False
        self._cancel: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Cancel the request unless it is complete."""
        if not self._over:
            self._over = True
            self._cancel()

    def _take(self, event: Event) -> Delta | ToolCallDelta | None:
        """Take an event; returns the delta to pass on, or None.

        Raises:
            EdgekitError: The request failed.
        """
        self._over = isinstance(event, Finished | Failure)
        if isinstance(event, Failure):
            if event.error.code == "shutting_down":
                raise RunnerError("the model was closed before the answer was complete")
            raise event.error
        if isinstance(event, Delta | ToolCallDelta):
            self._collected.add(event)
            return event
        if isinstance(event, Finished):
            choice = self._collected.answers[0]
            self._reply = Reply(
                text=choice.text,
                reasoning=choice.reasoning,
                tool_calls=tuple(choice.tool_calls),
                message={**message_body(choice)},
                finish_reason=event.reason,
                usage=event.usage,
                timings=event.timings,
                logprobs=tuple(choice.logprobs),
            )
        return None

    def _complete(self) -> Reply:
        if self._reply is None:
            raise RequestError("the stream was closed before the answer was complete", code="cancelled")
        return self._reply


class Stream(_OpenRequest):
    """Iterates over the deltas of an answer as they are generated.

    Leaving the loop early, or the `with` block around it, cancels the request.

    Args:
        submit: Submits the request.
    """

    def __init__(self, submit: Submit) -> None:
        super().__init__()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancel = submit(self._events.put)

    def __iter__(self) -> Iterator[Delta | ToolCallDelta]:
        """Yield each `Delta` and `ToolCallDelta`; raises the request's error if it fails."""
        try:
            while not self._over:
                delta = self._take(self._events.get())
                if delta is not None:
                    yield delta
        finally:
            self.close()

    @property
    def text_stream(self) -> Iterator[str]:
        """The answer's text alone, without reasoning and tool calls."""
        return (delta.text for delta in self if _is_text(delta))

    def reply(self) -> Reply:
        """Read what is left of the stream and return the complete answer.

        Raises:
            EdgekitError: The request failed, or was cancelled before it ended.
        """
        for _ in self:
            pass
        return self._complete()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close."""
        self.close()


class AsyncStream(_OpenRequest):
    """`Stream` for asyncio: `async for`, `async with`, `await stream.reply()`; made by `AsyncStream.open`."""

    def __init__(self) -> None:
        super().__init__()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    @classmethod
    async def open(cls, submit: Submit) -> AsyncStream:
        """Submit a request from a thread, as tokenizing a long prompt would block the event loop.

        Args:
            submit: Submits the request.
        """
        stream, loop = cls(), asyncio.get_running_loop()

        def receive(event: Event) -> None:
            # A closed loop raises RuntimeError; the engine then cancels the request.
            loop.call_soon_threadsafe(stream._events.put_nowait, event)

        submitting = asyncio.ensure_future(asyncio.to_thread(submit, receive))
        try:
            stream._cancel = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_submitted)
            raise
        return stream

    async def __aiter__(self) -> AsyncIterator[Delta | ToolCallDelta]:
        """Yield each `Delta` and `ToolCallDelta`; raises the request's error if it fails."""
        try:
            while not self._over:
                delta = self._take(await self._events.get())
                if delta is not None:
                    yield delta
        finally:
            self.close()

    @property
    async def text_stream(self) -> AsyncIterator[str]:
        """The answer's text alone, without reasoning and tool calls."""
        async for delta in self:
            if _is_text(delta):
                yield delta.text

    async def reply(self) -> Reply:
        """Read what is left of the stream and return the complete answer.

        Raises:
            EdgekitError: The request failed, or was cancelled before it ended.
        """
        async for _ in self:
            pass
        return self._complete()

    async def __aenter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _is_text(delta: Delta | ToolCallDelta) -> TypeGuard[Delta]:
    return isinstance(delta, Delta) and not delta.reasoning and bool(delta.text)


def _cancel_submitted(submitting: asyncio.Future[Callable[[], None]]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result()()
