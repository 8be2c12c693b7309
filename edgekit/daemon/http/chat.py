"""`POST /v1/chat/completions`: the OpenAI dialect of one request and its stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgekit.daemon.http.errors import error_response
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.wire import WireOptions, error_body, parse_chat, printable, timings_body, usage_body
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import Delta, Event, Failure, Finish
from edgekit.generation.scheduler import Scheduler, Ticket

__all__ = ["Backend", "ChatEndpoint", "check_model"]

# Proxies and clients give up on a connection that is silent for longer.
_KEEP_ALIVE_S = 15.0

Backend = Callable[[], tuple[Scheduler, ModelInfo]]
"""Gives the model's queue and name, or raises `not_ready`."""


def check_model(named: str | None, info: ModelInfo) -> None:
    """Raise `model_not_found` if a caller names another model than the one that is here."""
    if named is not None and named != info.name:
        raise RequestError(
            f"there is no model `{printable(named)}` here",
            hint=f"this daemon serves `{info.name}`",
            code="model_not_found",
            param="model",
        )


class ChatEndpoint:
    """The endpoint.

    Args:
        backend: Where requests go.
        max_body_bytes: A larger body is refused.
    """

    def __init__(self, backend: Backend, metrics: Metrics, max_body_bytes: int) -> None:
        self._backend = backend
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            body = await _read_body(request, self._max_body_bytes)
            answer = _Answer(f"chatcmpl-{request.state.request_id}")
            # Decoding and tokenizing a long prompt takes longer than an event loop may stand still.
            await run_in_threadpool(self._submit, body, request, answer)
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgekitError as error:
            self._metrics.refused("http", error)
            return error_response(error)
        return _Stream(answer) if answer.options.stream else _Whole(answer)

    def _submit(self, body: bytes, request: Request, answer: _Answer) -> None:
        scheduler, info = self._backend()
        client = request.client.host if request.client else ""
        chat, answer.options = parse_chat(body, request_id=request.state.request_id, client=client)
        check_model(answer.options.model, info)
        answer.model = info.name
        answer.ticket = scheduler.submit(chat, self._metrics.track("http", answer.receive))


class _Answer:
    """The events of one request, carried from the worker's thread to the event loop."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.created = int(time.time())
        self.model = ""
        self.options = WireOptions()
        self.ticket: Ticket | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def receive(self, event: Event) -> None:
        """Take an event; any thread."""
        # Raises once the loop is closed, which cancels the request: right, nobody listens.
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self, receive: Receive) -> AsyncGenerator[Event | None, None]:
        """Yield the events to the last, and None where keep-alive is due; cancel if the client goes away."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while True:
                event = asyncio.ensure_future(self._events.get())
                try:
                    await asyncio.wait({event, gone}, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                    if event.done():
                        yield event.result()
                        if not isinstance(event.result(), Delta):
                            return
                    elif gone.done():
                        return
                    else:
                        yield None
                finally:
                    event.cancel()
        finally:
            gone.cancel()
            if self.ticket:
                self.ticket.cancel()

    def head(self, kind: str) -> dict[str, Any]:
        """Return the fields that replies and chunks share."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class _Whole(Response):
    """The answer in one piece."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts = []
        last: Event | None = None
        events = self._answer.events(receive)
        try:
            async for event in events:
                if isinstance(event, Delta):
                    texts.append(event.text)
                else:
                    last = event or last
        finally:
            await events.aclose()
        if isinstance(last, Failure):
            await error_response(last.error)(scope, receive, send)
        elif isinstance(last, Finish):
            await JSONResponse(self._body("".join(texts), last))(scope, receive, send)

    def _body(self, text: str, finish: Finish) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish.reason,
        }
        return {
            **self._answer.head("chat.completion"),
            "choices": [choice],
            "usage": usage_body(finish.usage),
            "timings": timings_body(finish.timings, finish.usage),
        }


class _Stream(Response):
    """The answer as server-sent events."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's signature
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            # nginx would gather the pieces.
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        events = self._answer.events(receive)
        try:
            await _send(send, self._chunk({"role": "assistant", "content": ""}))
            async for event in events:
                if event is None:
                    await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                elif isinstance(event, Delta):
                    await _send(send, self._chunk({"content": event.text}))
                elif isinstance(event, Failure):
                    await _send(send, error_body(event.error))
                else:
                    await self._end(send, event)
        except OSError:
            # The client is gone; closing the events cancels the request.
            return
        finally:
            await events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _end(self, send: Send, finish: Finish) -> None:
        last = self._chunk({}, finish.reason)
        last["timings"] = timings_body(finish.timings, finish.usage)
        await _send(send, last)
        if self._answer.options.include_usage:
            usage = {**self._chunk({}), "choices": [], "usage": usage_body(finish.usage)}
            await _send(send, usage)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = {**self._answer.head("chat.completion.chunk"), "choices": [choice]}
        if self._answer.options.include_usage:
            chunk["usage"] = None
        return chunk


async def _send(send: Send, data: dict[str, Any]) -> None:
    body = f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, limit: int) -> bytes:
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
