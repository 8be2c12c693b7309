"""HTTP client: one streaming chat completion, as server-sent events. It works with any OpenAI-compatible server.

`$EDGEKIT_API_KEY` is sent as the API key, and `$SSL_CERT_FILE` has the CA certificates to trust.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from edgekit.client.answers import chat_body, read_calls, read_error, read_finish, unreadable
from edgekit.errors import ConfigError, EdgekitError, RequestError
from edgekit.generation.types import Delta, Finished, Message, ToolCallDelta

__all__ = ["ask_http", "describe_http"]

_CONNECT_TIMEOUT_S = 5.0
_UNIX = "unix:"

_OTHER_NAME = "ask by a name or an address that the certificate has"
# By OpenSSL's X509_V_ERR_… codes.
_CERTIFICATE_HINTS = {
    9: "it is not valid yet: check the clock of this machine",
    10: "it has expired: renew it on the daemon's machine, or check the clock of this one",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


def ask_http(
    url: str, messages: Sequence[Message], *, timeout_s: float = 120.0, **options: Any
) -> Generator[Delta | ToolCallDelta | Finished, None, None]:
    """Send a chat to a daemon over HTTP.

    Closing the iterator closes the connection, and the daemon then stops generating.

    Args:
        url: The server, `http://HOST:PORT` or `unix:PATH`, with or without `/v1`.
        messages: The chat.
        timeout_s: Maximum time without data, in seconds.
        options: Further fields of the body, such as `max_tokens` or `temperature`; None omits a field.

    Yields:
        Deltas of the text and of tool calls, then one `Finished`.

    Raises:
        EdgekitError: `daemon_unreachable`, `timeout`, `bad_reply`, or the daemon's error.
        ConfigError: `url` is not a URL.
    """
    base = _base(url)
    body = chat_body(messages, {"stream_options": {"include_usage": True}, **options})
    with (
        _client(url, base, timeout_s) as client,
        client.stream("POST", f"{base}/v1/chat/completions", json=body) as response,
    ):
        if response.status_code != 200:
            raise _refusal(response)
        yield from _events(response.iter_lines())


def describe_http(url: str) -> dict[str, Any]:
    """Return the first model of `GET /v1/models`, with its `id`.

    Args:
        url: As for `ask_http`.

    Raises:
        EdgekitError, ConfigError: As for `ask_http`.
    """
    base = _base(url)
    with _client(url, base, _CONNECT_TIMEOUT_S) as client:
        response = client.get(f"{base}/v1/models")
        if response.status_code != 200:
            raise _refusal(response)
        body = _decode(response.text)
    models = body.get("data")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise unreadable("no list of models")
    if not models:
        raise EdgekitError(f"the daemon at {base} is still loading its model", hint="try again", code="not_ready")
    return dict(models[0])


@contextmanager
def _client(url: str, base: str, timeout_s: float) -> Iterator[httpx.Client]:
    """An HTTP client whose errors are ours."""
    answered: list[httpx.Response] = []
    limits = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
    key = os.environ.get("EDGEKIT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        transport = httpx.HTTPTransport(uds=url.removeprefix(_UNIX)) if url.startswith(_UNIX) else None
        # A proxy from the environment would be used even for loopback, and cannot reach the device.
        with httpx.Client(
            timeout=limits,
            trust_env=False,
            headers=headers,
            transport=transport,
            verify=_trusted(base),
            event_hooks={"response": [answered.append]},
        ) as client:
            yield client
    except httpx.ConnectError as exc:
        if refused := _refused_certificate(exc):
            raise EdgekitError(
                f"the certificate of {base} is not trusted: {refused.verify_message}",
                hint=_CERTIFICATE_HINTS.get(
                    refused.verify_code,
                    "name a PEM file with its CA's certificate, or with itself if it is self-signed, in $SSL_CERT_FILE",
                ),
                code="daemon_unreachable",
            ) from exc
        if "WRONG_VERSION_NUMBER" in str(exc):
            raise EdgekitError(
                f"{base} does not speak TLS", hint="it may be http: try http://…", code="daemon_unreachable"
            ) from exc
        raise EdgekitError(
            f"no daemon answers at {base}: {exc}",
            hint="start it with `edgekit serve BUNDLE`, or give its address with --http URL",
            code="daemon_unreachable",
        ) from exc
    except httpx.TimeoutException as exc:
        raise EdgekitError(
            f"{base} did not answer in time", hint="it may be busy: try again, or raise the timeout", code="timeout"
        ) from exc
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise ConfigError(f"`{url}` is not a URL: {exc}", hint="write it as http://HOST:PORT") from exc
    except httpx.HTTPError as exc:
        # A TLS port answers plain HTTP with an alert, or closes the connection.
        may_be_tls = base.startswith("http:") and not url.startswith(_UNIX) and not answered
        hint = "if it serves TLS, write https://…; else see the daemon's log" if may_be_tls else "see the daemon's log"
        raise EdgekitError(f"the connection to {base} broke: {exc}", hint=hint, code="daemon_unreachable") from exc


def _base(url: str) -> str:
    return "http://localhost" if url.startswith(_UNIX) else url.rstrip("/").removesuffix("/v1")


def _refused_certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the error of a certificate that an error comes from."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _trusted(base: str) -> ssl.SSLContext | bool:
    """Return the certificates to trust; `$SSL_CERT_FILE` is not read by httpx here."""
    file = os.environ.get("SSL_CERT_FILE")
    if not file or not base.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as exc:
        raise ConfigError(f"cannot read the certificates in $SSL_CERT_FILE, {file}: {exc.strerror}") from exc


def _events(lines: Iterator[str]) -> Iterator[Delta | ToolCallDelta | Finished]:
    seq = 0
    reason: object = None
    usage: object = None
    timings: object = None
    for line in lines:
        # Only `data:` fields matter; comments and blank lines are keep-alives.
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
            calls = read_calls(delta.get("tool_calls"), seq)
            yield from calls
            seq += len(calls)
    raise EdgekitError("the answer ended early", hint="see the daemon's log", code="daemon_unreachable")


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
        return _with_key_hint(read_error(body["error"]))
    return unreadable(f"HTTP status {response.status_code}")


def _with_key_hint(error: EdgekitError) -> EdgekitError:
    """Say what a user of this client can set; the daemon's hint is for programs, and for who administers it."""
    hints = {
        "api_key_missing": "set $EDGEKIT_API_KEY to a key, which `edgekit key add NAME` makes on the daemon's machine",
        "invalid_api_key": "$EDGEKIT_API_KEY has another key; `edgekit key add NAME` makes one on the daemon's machine",
    }
    hint = hints.get(error.code)
    return error if hint is None else RequestError(error.message, hint=hint, code=error.code)
