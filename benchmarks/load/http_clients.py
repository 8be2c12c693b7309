"""HTTP clients: each sends one request and records its outcome in the ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import jsonschema
from load.bodies import CANARY, SCHEMAS, TOOLS, Bodies
from load.ledger import Ledger

__all__ = ["HttpClients"]

_TIMEOUT_S = 120.0
_TRANSPORT = "http"


class HttpClients:
    """All kinds of HTTP clients.

    Args:
        url: The daemon's URL, `http://HOST:PORT`.
        model: The model's name.
    """

    def __init__(self, url: str, model: str, bodies: Bodies, ledger: Ledger) -> None:
        # A new connection per request: a kept-alive one may be closed just as it is reused.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits, trust_env=False)
        self._model = model
        self._bodies = bodies
        self._ledger = ledger
        self._canary: str | None = None
        self.kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "full": (20, self._kind("full")),
            "stream": (20, self._kind("stream", stream=True)),
            "usage": (5, self._kind("usage", stream=True, stream_options={"include_usage": True})),
            "priority": (5, self.priority),
            "several": (3, self._kind("several", n=2, max_tokens=8)),
            "logprobs": (3, self._kind("logprobs", logprobs=True, top_logprobs=2)),
            "speculation": (5, self._kind("speculation", speculation=True, temperature=0, max_tokens=64)),
            "choice": (3, self._kind("choice", response_format={"type": "choice", "choice": ["yes", "no"]})),
            "completion": (4, self.completion),
            "ollama": (5, self.ollama),
            "schema": (8, self.schema),
            "tools": (5, self.tools),
            "deadline": (8, self.deadline),
            "canary": (6, self.canary),
            "hang up in a stream": (10, self.hang_up_in_a_stream),
            "hang up": (4, self.hang_up),
            "invalid": (5, self.invalid),
        }
        """Weight and function by name."""

    def _kind(self, name: str, **fields: Any) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            await self._send(name, self._bodies.chat(**fields))

        return call

    async def burst(self, count: int) -> None:
        """Send more concurrent requests than the queue holds."""
        await asyncio.gather(
            *(self._send("burst", self._bodies.chat(stream=number % 2 == 0)) for number in range(count))
        )

    async def canary(self) -> None:
        """The request whose answer is always the same."""
        message, outcome = await self._send("canary", dict(CANARY))
        if message is None:
            if outcome not in {"overloaded", "no answer"}:
                self._ledger.violated(f"the canary got `{outcome}`")
            return
        self._canary = self._canary if self._canary is not None else message["content"]
        if message["content"] != self._canary:
            self._ledger.violated(f"the canary got {message['content']!r} instead of {self._canary!r}")

    async def priority(self) -> None:
        """A request with a priority."""
        await self._send("priority", self._bodies.chat(priority=self._bodies.random.randint(-2, 2)))

    async def schema(self) -> None:
        """A request with a JSON schema."""
        schema = self._bodies.random.choice(SCHEMAS)
        response_format = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": True}}
        body = self._bodies.chat(response_format=response_format, max_tokens=96, stop=None)
        message, outcome = await self._send("schema", body)
        if message is not None and outcome == "stop":
            try:
                jsonschema.validate(json.loads(message["content"]), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                why = str(error).splitlines()[0]
                self._ledger.violated(f"an answer does not follow its schema: {why}: {message['content']!r} to {body}")

    async def completion(self) -> None:
        """A prompt to continue."""
        body = {
            "prompt": self._bodies.text(20),
            "max_tokens": 8,
            "logprobs": 1,
            "echo": self._bodies.random.random() < 0.5,
        }
        try:
            response = await self._client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            self._fail("completion", error)
        else:
            self._read("completion", response.status_code, response.content)

    async def ollama(self) -> None:
        """A request to the Ollama API: JSON lines, the last of which is done."""
        body = {"messages": self._bodies.chat()["messages"], "options": {"num_predict": 16}, "stream": True}
        try:
            response = await self._client.post("/api/chat", json={"model": self._model, **body})
        except httpx.HTTPError as error:
            self._fail("ollama", error)
            return
        *chunks, last = [json.loads(line) for line in response.text.splitlines()]
        if any(chunk.get("done") for chunk in chunks) or not (last.get("done") or "error" in last):
            self._ledger.violated(f"{_TRANSPORT} ollama: a stream ended with {last}")
        self._ledger.answered(_TRANSPORT, "ollama", last["code"] if "error" in last else last["done_reason"])

    async def tools(self) -> None:
        """A request that requires a tool call."""
        body = self._bodies.chat(tools=list(TOOLS), tool_choice="required", max_tokens=96, stop=None)
        message, outcome = await self._send("tools", body)
        if message is not None and outcome == "tool_calls":
            try:
                for call in message["tool_calls"]:
                    assert call["function"]["name"] == "set_light"
                    schema = TOOLS[0]["function"]["parameters"]
                    jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
            except (AssertionError, KeyError, TypeError, ValueError, jsonschema.ValidationError) as error:
                self._ledger.violated(f"a tool call is invalid: {message}: {str(error)[:100]}")

    async def deadline(self) -> None:
        """A request with a short deadline."""
        wait_s = round(self._bodies.random.choice((0.001, 0.01, 0.1, 0.5, 2.0)), 3)
        stream = self._bodies.random.random() < 0.5
        await self._send("deadline", self._bodies.chat(deadline_s=wait_s, max_tokens=64, stream=stream))

    async def hang_up_in_a_stream(self) -> None:
        """A client that disconnects after a few events."""
        body = self._bodies.chat(stream=True, max_tokens=64)
        wanted = self._bodies.random.choice((0, 1, 1, 3, 10))
        await self._send("hang up in a stream", body, disconnect_after=wanted)

    async def hang_up(self) -> None:
        """A client that disconnects before the answer."""
        wait_s = self._bodies.random.uniform(1.0, 3.0)
        body = self._bodies.chat(max_tokens=64)
        try:
            response = await asyncio.wait_for(self._client.post("/v1/chat/completions", json=body), wait_s)
        except asyncio.TimeoutError:
            # A second is enough for the daemon to have read the request.
            self._ledger.left(_TRANSPORT, "hang up")
        except httpx.HTTPError as error:
            self._fail("hang up", error)
        else:
            self._read("hang up", response.status_code, response.content)

    async def invalid(self) -> None:
        """A request that must be rejected."""
        await self._invalid(self._bodies.random.choice(self._bodies.invalid()))

    async def every_invalid(self) -> None:
        """Each of the requests that must be rejected, one after the other."""
        for body in self._bodies.invalid():
            await self._invalid(body)

    async def _invalid(self, body: dict[str, Any] | bytes) -> None:
        message, outcome = await self._send("invalid", body)
        if message is not None:
            self._ledger.violated(f"an invalid request was answered: {outcome}: {str(body)[-80:]}")

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def _send(
        self, kind: str, body: dict[str, Any] | bytes, disconnect_after: int | None = None
    ) -> tuple[dict[str, Any] | None, str]:
        """Send one request and record it; return the first choice's message, if any, and the outcome."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            request = self._client.stream("POST", "/v1/chat/completions", content=content, headers=headers)
            async with request as response:
                if response.headers["content-type"].startswith("text/event-stream"):
                    return await self._events(kind, response.aiter_lines(), disconnect_after)
                return self._read(kind, response.status_code, await response.aread())
        except httpx.HTTPError as error:
            self._fail(kind, error)
            return None, "no answer"

    def _fail(self, kind: str, error: httpx.HTTPError) -> None:
        self._ledger.left(_TRANSPORT, kind)
        self._ledger.violated(f"{_TRANSPORT} {kind}: {type(error).__name__}: {error}")

    def _read(self, kind: str, status: int, data: bytes) -> tuple[dict[str, Any] | None, str]:
        reply = json.loads(data)
        if status != 200:
            outcome = reply["error"]["code"]
            if status >= 500 and status not in {503, 504}:
                self._ledger.violated(f"{_TRANSPORT} {kind}: {status} {reply['error']['message']}")
        else:
            outcome = reply["choices"][0]["finish_reason"]
        self._ledger.answered(_TRANSPORT, kind, outcome)
        return (reply["choices"][0].get("message") if status == 200 else None), outcome

    async def _events(
        self, kind: str, lines: AsyncIterator[str], disconnect_after: int | None
    ) -> tuple[dict[str, Any] | None, str]:
        text = ""
        ends: list[str] = []
        done = False
        received = 0
        async for line in lines:
            if received == disconnect_after and not ends:
                self._ledger.left(_TRANSPORT, kind)
                return None, "disconnected"
            if not line.startswith("data:"):
                continue
            received += 1
            if done:
                self._ledger.violated(f"{_TRANSPORT} {kind}: an event after the last: {line[:80]}")
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                done = True
                continue
            event = json.loads(data)
            if "error" in event:
                ends.append(event["error"]["code"])
                done = True
                continue
            for choice in event["choices"]:
                if choice["index"] == 0:
                    text += choice["delta"].get("content") or ""
                    if choice["finish_reason"]:
                        ends.append(choice["finish_reason"])
        if len(ends) != 1 or not done:
            self._ledger.violated(f"{_TRANSPORT} {kind}: a stream ended with {ends or 'no reason'}")
        self._ledger.answered(_TRANSPORT, kind, ends[0] if ends else "no answer")
        return {"content": text}, ends[0] if ends else "no answer"
