"""Serves one generation request in any dialect: read the body, submit it, reply at once or as a stream.

A dialect parses a body into a `Reply`, which holds the request and formats the events of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.daemon.access.access import Access
from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.access.submission import BoundSubmit
from edgekit.daemon.api import CollectedReply
from edgekit.daemon.api.ignored import collect_ignored
from edgekit.daemon.http.batch import Batch
from edgekit.daemon.http.events import Events
from edgekit.daemon.metrics import Metrics
from edgekit.errors import EdgekitError, RequestError, UnavailableError
from edgekit.generation.engine.worker import EngineWorker, RequestState
from edgekit.generation.model import ModelInfo
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Event, Failure, Finished, ToolCallDelta

__all__ = ["Backend", "BodyBudget", "Dialect", "Endpoint", "Reply", "RequestContext"]

# Names what the body has that is ignored.
_IGNORED = "X-Edgekit-Ignored"
_JOINED_BYTES = 16 << 10
"""More is not joined: what a slow client has not read is limited while it waits as events."""

Backend = Callable[[], tuple[EngineWorker, ModelInfo]]
"""Returns the worker and the model's description, or raises `not_ready`."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a dialect needs to know of a request besides the body.

    Attributes:
        id: The request's id.
        client: The client's address.
        model: The served model.
        worker: Has the model's tokenizer and templates.
        identity: The sender; what is kept between requests belongs to its `tenant`.
    """

    id: str
    client: str
    model: ModelInfo
    worker: EngineWorker
    identity: Identity = ANONYMOUS


class Reply(Protocol):
    """Formats the answer to one request; the bytes that its methods return are sent unchanged.

    Attributes:
        requests: What is submitted: one, or with several prompts one for each.
    """

    requests: Sequence[ChatRequest]
    stream: bool
    content_type: str

    def accepted(self, prompt_tokens: int) -> None:
        """Take the number of prompt tokens, which is known before the answer begins."""

    def full(self, reply: CollectedReply, finished: Finished) -> Mapping[str, object] | Sequence[Mapping[str, object]]:
        """Return the body of a reply that is not streamed."""

    def start(self) -> bytes:
        """Return the start of a stream."""

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return the chunk of a delta."""

    def choice_finished(self, choice: ChoiceFinished) -> bytes:
        """Return the chunk that ends one of several choices while others continue."""

    def keep_alive(self) -> bytes:
        """Return a chunk without content, which keeps an idle connection open."""

    def finish(self, finished: Finished) -> bytes:
        """Return the end of a complete stream."""

    def failure(self, error: EdgekitError) -> bytes:
        """Return the end of a failed stream."""


Dialect = Callable[[bytes, RequestContext], "Reply | Response"]
"""Parses a body, or raises; a Response needs no generation and is sent unchanged."""


class BodyBudget:
    """The bytes that all bodies being read may take together: a slow client keeps what it has sent in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    def take(self, count: int) -> None:
        """Count a part of a body.

        Raises:
            UnavailableError: `overloaded`; nothing is counted.
        """
        if self._used + count > self._limit:
            raise UnavailableError(
                "too many request bodies are being received", hint="ask again", code="overloaded", retry_after_s=5.0
            )
        self._used += count

    def give_back(self, count: int) -> None:
        """Take back what was counted."""
        self._used -= count


class Endpoint:
    """An endpoint that generates.

    Args:
        backend: Returns the worker that requests are submitted to.
        metrics: Counts requests.
        max_body_bytes: Larger bodies are rejected.
        bodies: Limits the bodies being read, of all endpoints together.
        dialect: Parses bodies.
        refusal: Formats an error as a response.
        access: Submits requests under the limits of their sender.
    """

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics,
        max_body_bytes: int,
        bodies: BodyBudget,
        *,
        dialect: Dialect,
        refusal: Callable[[EdgekitError], Response],
        access: Access,
    ) -> None:
        self._backend = backend
        self._access = access
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._bodies = bodies
        self._dialect = dialect
        self._refusal = refusal

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            body = await self._read_body(request)
            events = Events()
            with collect_ignored() as ignored:
                # Decoding and tokenizing a long prompt would block the event loop for too long.
                reply = await run_in_threadpool(self._submit, body, request, events)
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgekitError as error:
            self._metrics.refused("http", error)
            request.state.audit.refused(error.code)
            return self._refusal(error)
        headers = {_IGNORED: ", ".join(ignored)} if ignored else {}
        if isinstance(reply, Response):
            reply.headers.update(headers)
            return reply
        return _Stream(reply, events, headers) if reply.stream else _Full(reply, events, self._refusal, headers)

    async def _read_body(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            RequestError: `body_too_large`, as soon as the limit is exceeded.
            UnavailableError: `overloaded`: too much is being read.
        """
        limit = self._max_body_bytes
        error = RequestError(
            f"the body is larger than {limit} bytes",
            hint="shorten the messages, or raise `http.max_body_bytes` on the server",
            code="body_too_large",
        )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise error
        body = bytearray()
        try:
            async for chunk in request.stream():
                self._bodies.take(len(chunk))
                body += chunk
                if len(body) > limit:
                    raise error
        finally:
            self._bodies.give_back(len(body))
        return bytes(body)

    def _submit(self, body: bytes, request: Request, events: Events) -> Reply | Response:
        worker, info = self._backend()
        client = request.client.host if request.client else ""
        identity = request.state.identity
        submit = self._access.bound(worker.submit, identity, info.names, request.state.audit)
        reply = self._dialect(body, RequestContext(request.state.request_id, client, info, worker, identity))
        if not isinstance(reply, Response):
            # A full reply keeps all events until the end anyway.
            events.bounded = reply.stream
            self._submit_all(reply, submit, events, worker.max_open)
        return reply

    def _submit_all(self, reply: Reply, submit: BoundSubmit[RequestState], events: Events, places: int) -> None:
        if len(reply.requests) == 1:
            state = submit(reply.requests[0], self._metrics.track("http", events.put))
            reply.accepted(len(state.prompt))
            events.state = state
            return
        admitted = submit.together(reply.requests)
        batch = Batch(reply.requests, self._metrics.track("http", events.put))
        # Before the first is submitted: a client that reads too slowly cancels them all.
        events.state = batch
        batch.submit(admitted, places)


class _Full(Response):
    """Sends the answer once it is complete."""

    def __init__(
        self,
        reply: Reply,
        events: Events,
        refusal: Callable[[EdgekitError], Response],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._reply = reply
        self._events = events
        self._refusal = refusal
        self._more = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        collected = CollectedReply(sum(request.n for request in self._reply.requests))
        response: Response | None = None
        events = self._events.until_over(scope, receive)
        try:
            async for event in events:
                if isinstance(event, Delta | ToolCallDelta):
                    collected.add(event)
                elif isinstance(event, Finished):
                    response = JSONResponse(
                        self._reply.full(collected, event), headers={**_cost_headers(event), **self._more}
                    )
                elif isinstance(event, Failure):
                    response = self._refusal(event.error)
        finally:
            await events.aclose()
        # There is no response if the client has disconnected.
        if response is not None:
            await response(scope, receive, send)


class _Stream(Response):
    """Streams the answer."""

    def __init__(self, reply: Reply, events: Events, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._reply = reply
        self._events = events
        self._more = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self._reply.content_type.encode()),
            (b"cache-control", b"no-cache"),
            # Otherwise nginx buffers the stream.
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in self._more.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        events = self._events.until_over(scope, receive)
        try:
            await _write(send, self._reply.start())
            unsent = b""
            async for event in events:
                unsent += self._formatted(event)
                # Each write passes through every layer of the server: events that have come together go out together.
                if not self._events.waiting or len(unsent) >= _JOINED_BYTES:
                    written, unsent = unsent, b""
                    await _write(send, written)
        except OSError:
            # The client has disconnected; closing the events cancels the request.
            return
        finally:
            await events.aclose()
        await send({"type": "http.response.body", "body": b""})

    def _formatted(self, event: Event | None) -> bytes:
        if event is None:
            return self._reply.keep_alive()
        if isinstance(event, Finished):
            return self._reply.finish(event)
        if isinstance(event, Failure):
            return self._reply.failure(event.error)
        if isinstance(event, ChoiceFinished):
            return self._reply.choice_finished(event)
        return self._reply.delta(event)


async def _write(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _cost_headers(finished: Finished) -> dict[str, str]:
    """Return headers with an answer's usage and timings; browsers and proxies display `Server-Timing`.

    Its durations are in milliseconds: W3C Server Timing, section 4.
    """
    timings, usage = finished.timings, finished.usage
    spans = {"queue": timings.queue_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
    energy = timings.as_energy(usage)
    measured = {"X-Edgekit-Joules": f"{energy['prefill_j'] + energy['decode_j']:.4f}"} if energy else {}
    return {
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in spans.items()),
        "X-Edgekit-Prompt-Tokens": str(usage.prompt_tokens),
        "X-Edgekit-Cached-Tokens": str(usage.cached_tokens),
        "X-Edgekit-Completion-Tokens": str(usage.completion_tokens),
        "X-Edgekit-Drafted-Tokens": str(usage.accepted_tokens + usage.rejected_tokens),
        "X-Edgekit-Accepted-Tokens": str(usage.accepted_tokens),
        "X-Edgekit-Kv-Bytes": str(timings.kv_bytes),
        "X-Edgekit-Left-Out-Messages": str(usage.left_out_messages),
        **measured,
    }
