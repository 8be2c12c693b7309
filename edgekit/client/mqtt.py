"""MQTT 5 client: request, deltas, final message, as `docs/mqtt.md` describes them.

While it waits it watches the device's presence, so that a device that goes offline is reported at once.
"""

from __future__ import annotations

import json
import math
import queue
import re
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

from edgekit.client.answers import chat_body, unreadable
from edgekit.client.reply import ReplyReader
from edgekit.errors import ConfigError, EdgekitError, spelled
from edgekit.generation.types import Delta, Finished, Message, Restarted, ToolCallDelta

__all__ = ["ask_mqtt", "describe_mqtt"]

_CONNECT_TIMEOUT_S = 5.0
_PRESENCE_TIMEOUT_S = 2.0
_NO_MATCHING_SUBSCRIBERS = 0x10
_USER = re.compile(r"[^+#$/\s\x00-\x1f\x7f-\x9f]{1,64}")


@dataclass(frozen=True, slots=True)
class _Received:
    """A received message."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error that ends the exchange."""

    error: EdgekitError


def ask_mqtt(
    host: str,
    port: int,
    device: str,
    messages: Sequence[Message],
    *,
    prefix: str = "edgekit",
    reply_prefix: str | None = None,
    username: str | None = None,
    password: str | None = None,
    tls: bool = False,
    ca_file: Path | None = None,
    timeout_s: float = 120.0,
    **options: Any,
) -> Generator[Delta | ToolCallDelta | Restarted | Finished, None, None]:
    """Send a chat to a device over MQTT.

    Closing the iterator publishes a cancellation.

    Args:
        host: The broker.
        port: The broker's port.
        device: The device's id in topics.
        messages: The chat.
        prefix: The daemon's `mqtt.prefix`.
        reply_prefix: Prefix of the reply topic; must be allowed by the daemon's `mqtt.reply_prefixes`, if it sets them.
            None means `replies` for a user, else `edgekit-replies`.
        username: User name for the broker. It is a level of the request's and the reply's topics too, which the
            broker's access list binds, unless it cannot be one.
        password: Password for the broker.
        tls: Use TLS.
        ca_file: CA certificates to trust, PEM; None means the system's.
        timeout_s: Maximum time without a message, in seconds; also the request's Message Expiry Interval, so that the
            request does not outlive its caller.
        options: Further fields of the body, such as `max_tokens` or `temperature`; None omits a field.

    Yields:
        Deltas of the text, complete tool calls, then one `Finished`. After a `Restarted` the answer begins again.

    Raises:
        EdgekitError: `broker_unreachable`, `broker_refused`, `device_offline`, `timeout`, `bad_reply`, or the daemon's
            error.
        ConfigError: `ca_file` cannot be read.
    """
    exchange = _Exchange(f"{prefix}/{device}", reply_prefix, username, timeout_s)
    exchange.log_in(username, password)
    try:
        exchange.connect(host, port, _tls_context(ca_file) if tls else None)
        exchange.check_presence(device, prefix)
        exchange.publish("request", chat_body(messages, options))
        over = False
        try:
            yield from exchange.answers()
            over = True
        except EdgekitError as exc:
            over = exc.code not in {"timeout", "bad_reply"}
            raise
        finally:
            # Ctrl-C, a closed iterator or a timeout leaves the answer unfinished: cancel the request.
            if not over:
                exchange.publish("cancel", None)
    finally:
        exchange.close()


def describe_mqtt(
    host: str,
    port: int,
    device: str,
    *,
    prefix: str = "edgekit",
    reply_prefix: str | None = None,
    username: str | None = None,
    password: str | None = None,
    tls: bool = False,
    ca_file: Path | None = None,
) -> dict[str, Any]:
    """Return the `model` of the device's info message, with its `id`; the arguments are those of `ask_mqtt`.

    Raises:
        EdgekitError, ConfigError: As for `ask_mqtt`.
    """
    exchange = _Exchange(f"{prefix}/{device}", reply_prefix, username, _PRESENCE_TIMEOUT_S)
    exchange.log_in(username, password)
    try:
        exchange.connect(host, port, _tls_context(ca_file) if tls else None)
        exchange.check_presence(device, prefix)
        model = exchange.info().get("model")
        return dict(model) if isinstance(model, Mapping) else {}
    finally:
        exchange.close()


class _Exchange:
    """One connection, for one request.

    paho's thread only puts items into queues: an exception there would end it silently.
    """

    def __init__(self, device_topic: str, reply_prefix: str | None, username: str | None, timeout_s: float) -> None:
        user = username if username is not None and _USER.fullmatch(username) else None
        self._device_topic = device_topic
        self._user_level = "" if user is None else f"/{user}"
        default = "edgekit-replies" if user is None else "replies"
        self._reply_topic = f"{reply_prefix or default}{self._user_level}/{uuid.uuid4().hex}"
        self._status_topic = f"{device_topic}/status"
        self._correlation = uuid.uuid4().bytes
        self._timeout_s = timeout_s
        self._inbox: queue.SimpleQueue[_Received | _Failed] = queue.SimpleQueue()
        self._acks: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
        self._session: object = None
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
        self._retain_available = True
        client.on_connect = lambda _client, _data, _flags, reason, properties: self._on_connect(reason, properties)
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self._acks.put(reasons)
        client.on_message = lambda _client, _data, message: self._on_message(message)
        client.on_publish = lambda _client, _data, _mid, reason, _properties: self._on_puback(reason)
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self._on_disconnect(reason)
        self._client = client

    def log_in(self, username: str | None, password: str | None) -> None:
        if username is not None:
            self._client.username_pw_set(username, password)

    def connect(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Connect, and subscribe to the reply topic and the device's presence."""
        where = f"{host}:{port}"
        if context is not None:
            self._client.tls_set_context(context)
        try:
            self._client.connect(host, port, clean_start=True)
            # Small packets must not wait for earlier ones to be acknowledged.
            sock: Any = self._client.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError) as exc:
            raise EdgekitError(
                f"no broker answers at {where}: {exc}",
                hint="check that it is running, and that address, port and TLS are right",
                code="broker_unreachable",
            ) from exc
        self._client.loop_start()
        self._wait_for_ack(where, "check user name and password")
        self._client.subscribe([(self._reply_topic, 1), (self._status_topic, 1)])
        self._wait_for_ack(where, "check that this user may subscribe to the reply topic")

    def _wait_for_ack(self, where: str, hint: str) -> None:
        """Wait until the broker acknowledges the last packet."""
        try:
            reasons = self._acks.get(timeout=_CONNECT_TIMEOUT_S)
        except queue.Empty as exc:
            raise EdgekitError(
                f"the broker at {where} does not respond", hint="is it an MQTT 5 broker?", code="broker_unreachable"
            ) from exc
        refusals = [str(reason) for reason in reasons if reason.is_failure]
        if refusals:
            message = f"the broker at {where} refused the connection: {refusals[0]}"
            raise EdgekitError(message, hint=hint, code="broker_refused")

    def check_presence(self, device: str, prefix: str) -> None:
        """Raise if the device's retained status is missing or `offline`; a broker may keep none."""
        if not self._retain_available:
            return
        try:
            item = self._inbox.get(timeout=_PRESENCE_TIMEOUT_S)
        except queue.Empty:
            others = self._devices(prefix)
            raise EdgekitError(
                f"no device `{device}` is known at this broker",
                hint=f"known: {', '.join(others)}" if others else f"no message is retained at {prefix}/+/status",
                code="device_offline",
            ) from None
        if isinstance(item, _Failed):
            raise item.error
        status = _decode(item.payload)
        self._session = status.get("session")
        if status.get("state") != "online":
            raise EdgekitError(
                f"the device `{device}` is offline",
                hint="check that its daemon is running and its network is up",
                code="device_offline",
            )

    def info(self) -> dict[str, Any]:
        """Return the device's retained info message; empty if there is none."""
        if not self._retain_available:
            return {}
        topic = f"{self._device_topic}/info"
        self._client.subscribe(topic, 1)
        deadline = time.monotonic() + _PRESENCE_TIMEOUT_S
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return {}
            if isinstance(item, _Failed):
                raise item.error
            if item.topic == topic:
                return _decode(item.payload)

    def _devices(self, prefix: str) -> list[str]:
        self._client.subscribe(f"{prefix}/+/status", 0)
        found = set()
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            try:
                item = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(item, _Received):
                found.add(item.topic.removeprefix(f"{prefix}/").removesuffix("/status"))
        return sorted(found)

    def publish(self, verb: str, body: Mapping[str, Any] | None) -> None:
        """Publish a request, or a cancellation, which needs no body: topic and Correlation Data identify it."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # unannotated in paho
        properties.ResponseTopic = self._reply_topic
        properties.CorrelationData = self._correlation
        properties.MessageExpiryInterval = max(1, math.ceil(self._timeout_s))
        payload = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        self._client.publish(
            f"{self._device_topic}/chat/{verb}{self._user_level}", payload, qos=1, properties=properties
        )

    def answers(self) -> Iterator[Delta | ToolCallDelta | Restarted | Finished]:
        """Yield the answer."""
        reader = ReplyReader()
        while True:
            for event in reader.read(self._next_reply()):
                yield event
                if isinstance(event, Finished):
                    return

    def _next_reply(self) -> dict[str, Any]:
        """Return the next message on the reply topic."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty as exc:
                raise EdgekitError(
                    f"the device sent nothing for {spelled(self._timeout_s)} s",
                    hint="it may be busy: try again, or raise the timeout",
                    code="timeout",
                ) from exc
            if isinstance(item, _Failed):
                raise item.error
            message = _decode(item.payload)
            if item.topic == self._reply_topic:
                return message
            # The Will Message of an older session does not count.
            if message.get("state") == "offline" and message.get("session") == self._session:
                raise EdgekitError(
                    "the device went offline before the answer was complete",
                    hint="ask again when it is back",
                    code="device_offline",
                )

    def _on_connect(self, reason: Any, properties: Any) -> None:
        self._retain_available = bool(getattr(properties, "RetainAvailable", 1))
        self._acks.put([reason])

    def _on_message(self, message: paho.MQTTMessage) -> None:
        self._inbox.put(_Received(message.topic, bytes(message.payload)))

    def _on_puback(self, reason: Any) -> None:
        if reason.value == _NO_MATCHING_SUBSCRIBERS:
            self._fail("the device is not subscribed to requests", "check that its daemon runs", "device_offline")
        elif reason.is_failure:
            hint = "check that this user may publish to the device's topics"
            self._fail(f"the broker refused the request: {reason}", hint, "broker_refused")

    def _on_disconnect(self, reason: Any) -> None:
        self._fail(f"the connection to the broker ended: {reason}", "see the broker's log", "broker_unreachable")

    def _fail(self, message: str, hint: str, code: str) -> None:
        self._inbox.put(_Failed(EdgekitError(message, hint=hint, code=code)))

    def close(self) -> None:
        """Send what is queued, such as a cancellation, and disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(f"cannot read the CA certificates in {ca_file}: {exc}", hint="give a PEM file") from exc


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except ValueError as exc:
        raise unreadable("a message that is not JSON") from exc
    if not isinstance(message, dict):
        raise unreadable("a message that is not an object")
    return message
