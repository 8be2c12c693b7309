"""Asking over MQTT 5: request, deltas, final message, as `docs/mqtt.md` describes them.

It listens to the device's presence while it waits, so that a device that is away is reported and not waited for.
"""

from __future__ import annotations

import json
import math
import queue
import socket
import ssl
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgekit.client.answers import chat_body, read_error, read_finish, unreadable
from edgekit.errors import ConfigError, EdgekitError
from edgekit.generation.request import Delta, Finish, Message

__all__ = ["ask_mqtt"]

_CONNECT_TIMEOUT_S = 5.0
_PRESENCE_TIMEOUT_S = 2.0
_NO_MATCHING_SUBSCRIBERS = 0x10


@dataclass(frozen=True, slots=True)
class _Came:
    """A message."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Broke:
    """Something that ends the call."""

    error: EdgekitError


def ask_mqtt(
    host: str,
    port: int,
    device: str,
    messages: Sequence[Message],
    *,
    prefix: str = "edgekit",
    reply_prefix: str = "edgekit-replies",
    username: str | None = None,
    password: str | None = None,
    tls: bool = False,
    ca_file: Path | None = None,
    timeout_s: float = 120.0,
    **options: Any,
) -> Generator[Delta | Finish, None, None]:
    """Ask a device over MQTT.

    Closing the iterator publishes a cancellation.

    Args:
        host: The broker.
        port: The broker's port.
        device: The device's id in topics.
        messages: The chat.
        prefix: The daemon's `mqtt.prefix`.
        reply_prefix: Where to listen for the answer; must agree with the daemon's `mqtt.reply_prefixes`, if it has any.
        username: For the broker.
        password: For the broker.
        tls: Use TLS.
        ca_file: Authorities to trust instead of the system's.
        timeout_s: Longest silence to bear; also the request's message expiry, so that it does not outlive us.
        options: Further fields of the body, `max_tokens` or `temperature` say; None leaves one out.

    Yields:
        Deltas, then one Finish.

    Raises:
        EdgekitError: `broker_unreachable`, `broker_refused`, `device_offline`, `timeout`, `bad_reply`, or what the
            daemon answered.
    """
    call = _Call(f"{prefix}/{device}", f"{reply_prefix}/{uuid.uuid4().hex}", timeout_s)
    call.log_in(username, password)
    try:
        call.connect(host, port, _tls_context(ca_file) if tls else None)
        call.check_presence(device, prefix)
        call.publish("request", chat_body(messages, options))
        over = False
        try:
            yield from call.answers()
            over = True
        except EdgekitError as exc:
            over = exc.code not in {"timeout", "bad_reply"}
            raise
        finally:
            # Ctrl-C, a closed iterator, a time-out: whatever leaves an answer unfinished takes the request back.
            if not over:
                call.publish("cancel", None)
    finally:
        call.close()


class _Call:
    """One connection, for one request.

    paho's thread only puts things into the inbox: an exception there would end it without a word.
    """

    def __init__(self, device_topic: str, reply_topic: str, timeout_s: float) -> None:
        self._device_topic = device_topic
        self._reply_topic = reply_topic
        self._status_topic = f"{device_topic}/status"
        self._correlation = uuid.uuid4().bytes
        self._timeout_s = timeout_s
        self._inbox: queue.SimpleQueue[_Came | _Broke] = queue.SimpleQueue()
        self._steps: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
        self._session: object = None
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
        client.on_connect = lambda _client, _data, _flags, reason, _properties: self._steps.put([reason])
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self._steps.put(reasons)
        client.on_message = lambda _client, _data, message: self._on_message(message)
        client.on_publish = lambda _client, _data, _mid, reason, _properties: self._on_puback(reason)
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self._on_disconnect(reason)
        self._client = client

    def log_in(self, username: str | None, password: str | None) -> None:
        if username is not None:
            self._client.username_pw_set(username, password)

    def connect(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Connect, and listen to the reply topic and the device's presence."""
        where = f"{host}:{port}"
        if context is not None:
            self._client.tls_set_context(context)
        try:
            self._client.connect(host, port, clean_start=True)
            # Small packets must not wait for one another.
            sock: Any = self._client.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError) as exc:
            raise EdgekitError(
                f"no broker answers at {where}: {exc}",
                hint="is it running, and do address, port and TLS agree with it?",
                code="broker_unreachable",
            ) from exc
        self._client.loop_start()
        self._step(where, "check user name and password")
        self._client.subscribe([(self._reply_topic, 1), (self._status_topic, 1)])
        self._step(where, "may this user subscribe to the reply topic?")

    def _step(self, where: str, hint: str) -> None:
        """Wait for the broker's yes to the last packet."""
        try:
            reasons = self._steps.get(timeout=_CONNECT_TIMEOUT_S)
        except queue.Empty as exc:
            raise EdgekitError(
                f"the broker at {where} does not speak", hint="is it an MQTT 5 broker?", code="broker_unreachable"
            ) from exc
        refusals = [str(reason) for reason in reasons if reason.is_failure]
        if refusals:
            raise EdgekitError(f"the broker at {where} refused us: {refusals[0]}", hint=hint, code="broker_refused")

    def check_presence(self, device: str, prefix: str) -> None:
        """Raise if the device's retained status is missing or says that it is away."""
        try:
            item = self._inbox.get(timeout=_PRESENCE_TIMEOUT_S)
        except queue.Empty:
            others = self._devices(prefix)
            raise EdgekitError(
                f"no device `{device}` is known at this broker",
                hint=f"known: {', '.join(others)}" if others else f"nothing is retained at {prefix}/+/status",
                code="device_offline",
            ) from None
        if isinstance(item, _Broke):
            raise item.error
        status = _decode(item.payload)
        self._session = status.get("session")
        if status.get("state") != "online":
            raise EdgekitError(
                f"the device `{device}` is offline",
                hint="is its daemon running, and its network up?",
                code="device_offline",
            )

    def _devices(self, prefix: str) -> list[str]:
        self._client.subscribe(f"{prefix}/+/status", 0)
        found = set()
        until = time.monotonic() + 0.5
        while (left := until - time.monotonic()) > 0:
            try:
                item = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(item, _Came):
                found.add(item.topic.removeprefix(f"{prefix}/").removesuffix("/status"))
        return sorted(found)

    def publish(self, verb: str, body: Mapping[str, Any] | None) -> None:
        """Send a request, or a cancellation, which needs no body: reply topic and correlation name it."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # unannotated in paho
        properties.ResponseTopic = self._reply_topic
        properties.CorrelationData = self._correlation
        properties.MessageExpiryInterval = max(1, math.ceil(self._timeout_s))
        payload = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        self._client.publish(f"{self._device_topic}/chat/{verb}", payload, qos=1, properties=properties)

    def answers(self) -> Iterator[Delta | Finish]:
        """Yield the answer; deltas that went missing are made good from the final message."""
        said = ""
        seq = told = 0
        whole = True
        while True:
            message = self._next()
            kind = message.get("type")
            if kind == "delta" and message.get("seq", 0) >= seq:
                whole = whole and message["seq"] == seq
                if whole:
                    seq += 1
                    text = str(message.get("text", ""))
                    said += text
                    if thoughts := message.get("reasoning_content"):
                        yield Delta(told, str(thoughts), reasoning=True)
                        told += 1
                    if text or not thoughts:
                        yield Delta(told, text)
                        told += 1
            elif kind == "final":
                # Null where there is nothing but calls.
                content = str((message.get("message") or {}).get("content") or "")
                if content.startswith(said) and len(content) > len(said):
                    yield Delta(told, content[len(said) :])
                yield read_finish(message.get("finish_reason"), message.get("usage"), message.get("timings"))
                return
            elif kind == "error":
                raise read_error(message.get("error"))

    def _next(self) -> dict[str, Any]:
        """The next message on the reply topic."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty as exc:
                raise EdgekitError(
                    f"the device said nothing for {self._timeout_s:g} s",
                    hint="it may be busy: ask again, or wait longer",
                    code="timeout",
                ) from exc
            if isinstance(item, _Broke):
                raise item.error
            message = _decode(item.payload)
            if item.topic == self._reply_topic:
                return message
            # A will of an older session says nothing about this one.
            if message.get("state") == "offline" and message.get("session") == self._session:
                raise EdgekitError(
                    "the device went offline before the answer was complete",
                    hint="ask again when it is back",
                    code="device_offline",
                )

    def _on_message(self, message: paho.MQTTMessage) -> None:
        self._inbox.put(_Came(message.topic, bytes(message.payload)))

    def _on_puback(self, reason: Any) -> None:
        if reason.value == _NO_MATCHING_SUBSCRIBERS:
            self._break("the device does not listen", "is its daemon running?", "device_offline")
        elif reason.is_failure:
            self._break(f"the broker refused the request: {reason}", "may this user publish to it?", "broker_refused")

    def _on_disconnect(self, reason: Any) -> None:
        self._break(f"the connection to the broker ended: {reason}", "see the broker's log", "broker_unreachable")

    def _break(self, message: str, hint: str, code: str) -> None:
        self._inbox.put(_Broke(EdgekitError(message, hint=hint, code=code)))

    def close(self) -> None:
        """Send what is left to send, a cancellation say, and hang up."""
        self._client.disconnect()
        self._client.loop_stop()


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(f"cannot read the authorities in {ca_file}: {exc}", hint="name a PEM file") from exc


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except ValueError as exc:
        raise unreadable("a message that is not JSON") from exc
    if not isinstance(message, dict):
        raise unreadable("a message that is not an object")
    return message
