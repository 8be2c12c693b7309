"""Callers over HTTP: each sends one request, and the ledger hears how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import jsonschema
from load.bodies import CANARY, SCHEMAS, TOOLS, Bodies
from load.ledger import Ledger

__all__ = ["HttpCallers"]

_PATIENCE_S = 120.0
_DOOR = "http"


class HttpCallers:
    """All kinds of HTTP callers.

    Args:
        url: The daemon, `http://HOST:PORT`.
        model: Its model's name.
    """

    def __init__(self, url: str, model: str, bodies: Bodies, ledger: Ledger) -> None:
        # Every request has a connection of its own: one kept open may be closed just as it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits, trust_env=False)
        self._model = model
        self._bodies = bodies
        self._ledger = ledger
        self._canary: str | None = None
        self.kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "whole": (20, self._kind("whole")),
            "stream": (20, self._kind("stream", stream=True)),
            "usage": (5, self._kind("usage", stream=True, stream_options={"include_usage": True})),
            "priority": (5, self.priority),
            "several": (3, self._kind("several", n=2, max_tokens=8)),
            "logprobs": (3, self._kind("logprobs", logprobs=True, top_logprobs=2)),
            "guessing": (5, self._kind("guessing", speculation=True, temperature=0, max_tokens=64)),
            "one of two": (3, self._kind("one of two", response_format={"type": "choice", "choice": ["yes", "no"]})),
            "text": (4, self.text),
            "ollama": (5, self.ollama),
            "schema": (8, self.schema),
            "tools": (5, self.tools),
            "deadline": (8, self.deadline),
            "canary": (6, self.canary),
            "hang up in a stream": (10, self.hang_up_in_a_stream),
            "hang up": (4, self.hang_up),
            "wrong": (5, self.wrong),
        }
        """Name to weight and caller."""

    def _kind(self, name: str, **fields: Any) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            await self._send(name, self._bodies.chat(**fields))

        return call

    async def burst(self, count: int) -> None:
        """Many at once, more than may wait."""
        await asyncio.gather(
            *(self._send("burst", self._bodies.chat(stream=number % 2 == 0)) for number in range(count))
        )

    async def canary(self) -> None:
        """The question that is always answered alike."""
        message, outcome = await self._send("canary", dict(CANARY))
        if message is None:
            if outcome not in {"overloaded", "no answer"}:
                self._ledger.violated(f"the canary got `{outcome}`")
            return
        self._canary = self._canary if self._canary is not None else message["content"]
        if message["content"] != self._canary:
            self._ledger.violated(f"the canary was told {message['content']!r} instead of {self._canary!r}")

    async def priority(self) -> None:
        """One who is more important, or less."""
        await self._send("priority", self._bodies.chat(priority=self._bodies.random.randint(-2, 2)))

    async def schema(self) -> None:
        """An answer in JSON."""
        schema = self._bodies.random.choice(SCHEMAS)
        form = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": True}}
        body = self._bodies.chat(response_format=form, max_tokens=96, stop=None)
        message, outcome = await self._send("schema", body)
        if message is not None and outcome == "stop":
            try:
                jsonschema.validate(json.loads(message["content"]), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                why = str(error).splitlines()[0]
                self._ledger.violated(f"an answer does not follow its schema: {why}: {message['content']!r} to {body}")

    async def text(self) -> None:
        """A text to continue."""
        body = {
            "prompt": self._bodies.text(20),
            "max_tokens": 8,
            "logprobs": 1,
            "echo": self._bodies.random.random() < 0.5,
        }
        try:
            response = await self._client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            self._fail("text", error)
        else:
            self._read("text", response.status_code, response.content)

    async def ollama(self) -> None:
        """One who speaks Ollama's dialect: JSON lines, the last of which is done."""
        body = {"messages": self._bodies.chat()["messages"], "options": {"num_predict": 16}, "stream": True}
        try:
            response = await self._client.post("/api/chat", json={"model": self._model, **body})
        except httpx.HTTPError as error:
            self._fail("ollama", error)
            return
        *pieces, last = [json.loads(line) for line in response.text.splitlines()]
        if any(piece.get("done") for piece in pieces) or not (last.get("done") or "error" in last):
            self._ledger.violated(f"{_DOOR} ollama: a stream ended with {last}")
        self._ledger.answered(_DOOR, "ollama", last["code"] if "error" in last else last["done_reason"])

    async def tools(self) -> None:
        """A call."""
        body = self._bodies.chat(tools=list(TOOLS), tool_choice="required", max_tokens=96, stop=None)
        message, outcome = await self._send("tools", body)
        if message is not None and outcome == "tool_calls":
            try:
                for call in message["tool_calls"]:
                    assert call["function"]["name"] == "set_light"
                    schema = TOOLS[0]["function"]["parameters"]
                    jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
            except (AssertionError, KeyError, TypeError, ValueError, jsonschema.ValidationError) as error:
                self._ledger.violated(f"a tool call is wrong: {message}: {str(error)[:100]}")

    async def deadline(self) -> None:
        """One who will not wait for long."""
        wait_s = round(self._bodies.random.choice((0.001, 0.01, 0.1, 0.5, 2.0)), 3)
        stream = self._bodies.random.random() < 0.5
        await self._send("deadline", self._bodies.chat(deadline_s=wait_s, max_tokens=64, stream=stream))

    async def hang_up_in_a_stream(self) -> None:
        """One who leaves after a few events."""
        body = self._bodies.chat(stream=True, max_tokens=64)
        wanted = self._bodies.random.choice((0, 1, 1, 3, 10))
        await self._send("hang up in a stream", body, leave_after=wanted)

    async def hang_up(self) -> None:
        """One who leaves before the answer is there."""
        wait_s = self._bodies.random.uniform(1.0, 3.0)
        body = self._bodies.chat(max_tokens=64)
        try:
            response = await asyncio.wait_for(self._client.post("/v1/chat/completions", json=body), wait_s)
        except asyncio.TimeoutError:
            # A second is time enough for the daemon to have read the request.
            self._ledger.left(_DOOR, "hang up")
        except httpx.HTTPError as error:
            self._fail("hang up", error)
        else:
            self._read("hang up", response.status_code, response.content)

    async def wrong(self) -> None:
        """One who is refused."""
        body = self._bodies.wrong()
        message, outcome = await self._send("wrong", body)
        if message is not None:
            self._ledger.violated(f"a wrong request was answered: {outcome}")

    async def close(self) -> None:
        """Hang up for good."""
        await self._client.aclose()

    async def _send(
        self, kind: str, body: dict[str, Any] | bytes, leave_after: int | None = None
    ) -> tuple[dict[str, Any] | None, str]:
        """Send, read and book one request; returns the first answer's message, if there is one, and the outcome."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            request = self._client.stream("POST", "/v1/chat/completions", content=content, headers=headers)
            async with request as response:
                if response.headers["content-type"].startswith("text/event-stream"):
                    return await self._events(kind, response.aiter_lines(), leave_after)
                return self._read(kind, response.status_code, await response.aread())
        except httpx.HTTPError as error:
            self._fail(kind, error)
            return None, "no answer"

    def _fail(self, kind: str, error: httpx.HTTPError) -> None:
        self._ledger.left(_DOOR, kind)
        self._ledger.violated(f"{_DOOR} {kind}: {type(error).__name__}: {error}")

    def _read(self, kind: str, status: int, data: bytes) -> tuple[dict[str, Any] | None, str]:
        reply = json.loads(data)
        if status != 200:
            outcome = reply["error"]["code"]
            if status >= 500 and status not in {503, 504}:
                self._ledger.violated(f"{_DOOR} {kind}: {status} {reply['error']['message']}")
        else:
            outcome = reply["choices"][0]["finish_reason"]
        self._ledger.answered(_DOOR, kind, outcome)
        return (reply["choices"][0].get("message") if status == 200 else None), outcome

    async def _events(
        self, kind: str, lines: AsyncIterator[str], leave_after: int | None
    ) -> tuple[dict[str, Any] | None, str]:
        text = ""
        ends: list[str] = []
        done = False
        came = 0
        async for line in lines:
            if came == leave_after and not ends:
                self._ledger.left(_DOOR, kind)
                return None, "left"
            if not line.startswith("data:"):
                continue
            came += 1
            if done:
                self._ledger.violated(f"{_DOOR} {kind}: an event after the last: {line[:80]}")
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
            self._ledger.violated(f"{_DOOR} {kind}: a stream ended with {ends or 'no reason'}")
        self._ledger.answered(_DOOR, kind, ends[0] if ends else "no answer")
        return {"content": text}, ends[0] if ends else "no answer"
