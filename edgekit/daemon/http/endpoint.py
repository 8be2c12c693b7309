"""One request from its body to its last byte, in whatever dialect: read, submit, answer whole or as it comes.

A dialect turns a body into a `Reply`, which knows the request and how to write each event of its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.daemon.http.events import Events
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.wire import Gathered
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import ChatRequest, Delta, Ended, Failure, Finish, ToolCallDelta
from edgekit.generation.scheduler import Scheduler

__all__ = ["Asked", "Backend", "Dialect", "Endpoint", "Reply", "read_body"]

Backend = Callable[[], tuple[Scheduler, ModelInfo]]
"""Gives the model's queue and name, or raises `not_ready`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a dialect needs besides the body.

    Attributes:
        id: The request's.
        client: Who asks: its address.
        model: What is served.
    """

    id: str
    client: str
    model: ModelInfo


class Reply(Protocol):
    """How one request is answered; what it returns as bytes goes out as it is."""

    request: ChatRequest
    stream: bool
    content_type: str

    def whole(self, answers: Gathered, finish: Finish) -> dict[str, Any]:
        """The reply in one piece."""

    def opening(self) -> bytes:
        """What a stream begins with."""

    def piece(self, event: Delta | ToolCallDelta) -> bytes:
        """A piece of the answer."""

    def ended(self, answer: Ended) -> bytes:
        """The end of one of several answers, while others go on."""

    def pause(self) -> bytes:
        """What keeps a silent connection open and says nothing."""

    def end(self, finish: Finish) -> bytes:
        """The end of a complete answer."""

    def failure(self, error: EdgekitError) -> bytes:
        """The end of one that failed."""


Dialect = Callable[[bytes, Asked], "Reply | Response"]
"""Reads a body, or raises; a Response needs no model and is sent as it is."""


class Endpoint:
    """An endpoint.

    Args:
        backend: Where requests go.
        metrics: Where they are counted.
        max_body_bytes: A larger body is refused.
        dialect: How bodies are read and answers written.
        refusal: How the dialect writes an error that is the whole response.
    """

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics,
        max_body_bytes: int,
        dialect: Dialect,
        refusal: Callable[[EdgekitError], Response],
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._dialect = dialect
        self._refusal = refusal

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            body = await read_body(request, self._max_body_bytes)
            events = Events()
            # Decoding and tokenizing a long prompt takes longer than an event loop may stand still.
            reply = await run_in_threadpool(self._submit, body, request, events)
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgekitError as error:
            self._metrics.refused("http", error)
            return self._refusal(error)
        if isinstance(reply, Response):
            return reply
        return _Stream(reply, events) if reply.stream else _Whole(reply, events, self._refusal)

    def _submit(self, body: bytes, request: Request, events: Events) -> Reply | Response:
        scheduler, info = self._backend()
        client = request.client.host if request.client else ""
        reply = self._dialect(body, Asked(request.state.request_id, client, info))
        if not isinstance(reply, Response):
            events.ticket = scheduler.submit(reply.request, self._metrics.track("http", events.put))
        return reply


class _Whole(Response):
    """The answer in one piece."""

    def __init__(self, reply: Reply, events: Events, refusal: Callable[[EdgekitError], Response]) -> None:
        super().__init__()
        self._reply = reply
        self._events = events
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = Gathered(self._reply.request.n)
        response: Response | None = None
        events = self._events.until_over(receive)
        try:
            async for event in events:
                if isinstance(event, Delta | ToolCallDelta):
                    answers.add(event)
                elif isinstance(event, Finish):
                    response = JSONResponse(self._reply.whole(answers, event), headers=cost_headers(event))
                elif isinstance(event, Failure):
                    response = self._refusal(event.error)
        finally:
            await events.aclose()
        # There is none if the client has gone away.
        if response is not None:
            await response(scope, receive, send)


class _Stream(Response):
    """The answer as it comes."""

    def __init__(self, reply: Reply, events: Events) -> None:
        super().__init__()
        self._reply = reply
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's signature
        headers = [
            (b"content-type", self._reply.content_type.encode()),
            (b"cache-control", b"no-cache"),
            # nginx would gather the pieces.
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        events = self._events.until_over(receive)
        try:
            await _write(send, self._reply.opening())
            async for event in events:
                if event is None:
                    await _write(send, self._reply.pause())
                elif isinstance(event, Finish):
                    await _write(send, self._reply.end(event))
                elif isinstance(event, Failure):
                    await _write(send, self._reply.failure(event.error))
                elif isinstance(event, Ended):
                    await _write(send, self._reply.ended(event))
                else:
                    await _write(send, self._reply.piece(event))
        except OSError:
            # The client is gone; closing the events cancels the request.
            return
        finally:
            await events.aclose()
        await send({"type": "http.response.body", "body": b""})


async def _write(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def cost_headers(finish: Finish) -> dict[str, str]:
    """Return what an answer took, for who looks at headers; browsers and proxies draw `Server-Timing`.

    The header's durations are in milliseconds: W3C Server Timing, section 4.
    """
    timings, usage = finish.timings, finish.usage
    spans = {"queue": timings.queue_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
    return {
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in spans.items()),
        "X-Edgekit-Prompt-Tokens": str(usage.prompt_tokens),
        "X-Edgekit-Cached-Tokens": str(usage.cached_tokens),
        "X-Edgekit-Completion-Tokens": str(usage.completion_tokens),
        "X-Edgekit-Drafted-Tokens": str(usage.accepted_tokens + usage.rejected_tokens),
        "X-Edgekit-Accepted-Tokens": str(usage.accepted_tokens),
        "X-Edgekit-Kv-Bytes": str(timings.kv_bytes),
        "X-Edgekit-Left-Out-Messages": str(usage.left_out_messages),
    }


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: `body_too_large`, as soon as that is known.
    """
    error = RequestError(f"the body is larger than {limit} bytes", hint="shorten the messages", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise error
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise error
    return bytes(body)
