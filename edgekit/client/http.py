"""Asking over HTTP: one streaming chat completion, as server-sent events. It talks to any OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx

from edgekit.client.answers import chat_body, read_error, read_finish, unreadable
from edgekit.errors import ConfigError, EdgekitError
from edgekit.generation.request import Delta, Finish, Message

__all__ = ["ask_http"]

_CONNECT_TIMEOUT_S = 5.0


def ask_http(
    url: str, messages: Sequence[Message], *, timeout_s: float = 120.0, **options: Any
) -> Generator[Delta | Finish, None, None]:
    """Ask a daemon over HTTP.

    Closing the iterator hangs up, and the daemon then stops generating.

    Args:
        url: The server, `http://HOST:PORT`, with or without `/v1`.
        messages: The chat.
        timeout_s: Longest silence to bear.
        options: Further fields of the body, `max_tokens` or `temperature` say; None leaves one out.

    Yields:
        Deltas, then one Finish.

    Raises:
        EdgekitError: `daemon_unreachable`, `timeout`, `bad_reply`, or what the daemon answered.
        ConfigError: `url` is no URL.
    """
    base = url.rstrip("/").removesuffix("/v1")
    body = chat_body(messages, {"stream_options": {"include_usage": True}, **options})
    limits = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
    try:
        with (
            # A proxy of the environment would be asked even for loopback, and knows no device.
            httpx.Client(timeout=limits, trust_env=False) as client,
            client.stream("POST", f"{base}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                raise _refusal(response)
            yield from _events(response.iter_lines())
    except httpx.ConnectError as exc:
        raise EdgekitError(
            f"nothing answers at {base}: {exc}",
            hint="start it with `edgekit serve BUNDLE`, or name its address with --http URL",
            code="daemon_unreachable",
        ) from exc
    except httpx.TimeoutException as exc:
        raise EdgekitError(
            f"{base} did not answer in time", hint="it may be busy: ask again, or wait longer", code="timeout"
        ) from exc
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise ConfigError(f"`{url}` is not a URL: {exc}", hint="write it as http://HOST:PORT") from exc
    except httpx.HTTPError as exc:
        raise EdgekitError(
            f"the connection to {base} broke: {exc}", hint="see the daemon's log", code="daemon_unreachable"
        ) from exc


def _events(lines: Iterator[str]) -> Iterator[Delta | Finish]:
    seq = 0
    reason: object = None
    usage: object = None
    timings: object = None
    for line in lines:
        # An event's `data:` field; comments and blank lines keep a connection alive.
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            yield read_finish(reason, usage, timings)
            return
        chunk = _decode(data)
        if "error" in chunk:
            raise read_error(chunk["error"])
        usage = chunk.get("usage") or usage
        timings = chunk.get("timings") or timings
        for choice in chunk.get("choices") or []:
            reason = choice.get("finish_reason") or reason
            delta = choice.get("delta") or {}
            for name in ("reasoning_content", "content"):
                if text := delta.get(name):
                    yield Delta(seq, text, reasoning=name == "reasoning_content")
                    seq += 1
    raise EdgekitError("the answer broke off", hint="see the daemon's log", code="daemon_unreachable")


def _decode(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as exc:
        raise unreadable("an event that is not JSON") from exc
    if not isinstance(chunk, dict):
        raise unreadable("an event that is not an object")
    return chunk


def _refusal(response: httpx.Response) -> EdgekitError:
    try:
        body = json.loads(response.read())
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return read_error(body["error"])
    return unreadable(f"HTTP status {response.status_code}")
