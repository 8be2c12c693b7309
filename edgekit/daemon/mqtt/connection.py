"""The connection to the broker: connect, reconnect with backoff, and resend unacknowledged messages.

One thread drives it through `step`, and everything here runs on that thread: an exception in a callback would end
paho's own loop thread while `is_connected()` stayed true. Every connection has a new paho client, so that a packet
identifier of an old connection cannot be acknowledged on a new one. Messages that the broker has not acknowledged are
kept here and sent again after a reconnect; `suspects.py` bounds that.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.outgoing import Outgoing, new_properties
from edgekit.daemon.mqtt.receipts import Receipts
from edgekit.daemon.mqtt.sockets import Waker, close_quietly, poll, readable
from edgekit.daemon.mqtt.suspects import MAX_LOSSES, Suspects
from edgekit.daemon.rare_log import RareLog

__all__ = ["Connection", "Listener"]

_log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
REFUSED_BACKOFF_S = 30.0
"""Backoff after a refusal: wrong credentials do not change within a second."""
STABLE_AFTER_S = 30.0
"""A connection that lasted this long resets the backoff."""

RECEIVE_MAXIMUM = 16
_MAX_UNACKNOWLEDGED = 64
"""Received messages that need not be handled before the broker sends more."""
_MAX_PACKETS = 128
"""Packets that one `step` reads at most: that many messages, and as many acknowledgements of ours."""
MAX_OUTBOX = 1024
MAX_OUTBOX_BYTES = 32 << 20
"""Limit of what waits to be sent, which is all in memory. Replies that are stored are handed over a few at a time."""
NO_MATCHING_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E
_UNSPECIFIED = 0x80
_RETAIN_NOT_SUPPORTED = 0x9A
_MAX_SHORT_CONNECTIONS = 3
"""After so many short connections in a row a second client with our id is suspected: not every broker reports it."""


class Listener(Protocol):
    """Callbacks of a connection, called on the thread that calls `step`."""

    def will(self) -> Outgoing:
        """Return the Will Message of the next connection."""

    def on_ready(self) -> None:
        """Handle a connection whose subscriptions are all granted."""

    def on_message(self, message: paho.MQTTMessage, ack: Callable[[], None]) -> None:
        """Handle a message.

        Args:
            message: The message.
            ack: Acknowledges it; called on the same thread, once the message need not be delivered again. Without
                effect on a later connection, on which the broker delivers it again. If this raises, it is acknowledged.
        """


class Connection:
    """Keeps one MQTT 5 session with the configured broker.

    Args:
        config: The configuration; `host` must be set.
        client_id: MQTT client identifier, which names the session.
        subscriptions: Topics to subscribe to at QoS 1.
        listener: Receives the callbacks.
    """

    def __init__(
        self, config: MqttConfig, *, client_id: str, subscriptions: tuple[str, ...], listener: Listener
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._listener = listener
        self._client: paho.Client | None = None
        self._ready = False
        self._connected_at = 0.0
        self._failures = 0
        self._short_connections = 0
        self._retry_at = 0.0
        self._min_backoff_s = 0.0
        self._last_log = ""
        self._disconnect_reason: tuple[str, str | None] | None = None
        self._subscribe_refusal: tuple[str, str | None] | None = None
        self._session_present = False
        self._max_packet_size = 0
        self._retain_available = True
        self._receive_maximum = RECEIVE_MAXIMUM
        self._outbox: deque[Outgoing] = deque()
        self._outbox_bytes = 0
        self._in_flight: dict[int, Outgoing] = {}
        self._receipts = Receipts()
        self._connecting = False
        self._suspects = Suspects()
        self._refused, self._too_large = RareLog(_log), RareLog(_log)
        self._waker = Waker()
        self.connections = 0
        self.dropped = 0

    @property
    def ready(self) -> bool:
        """Whether the connection is up and subscribed."""
        return self._ready

    @property
    def connecting(self) -> bool:
        """Whether the thread waits for a new connection: name resolution may take a minute."""
        return self._connecting

    @property
    def can_send_now(self) -> bool:
        """Whether `send` would send at once; if not, the caller should coalesce more first."""
        return self._ready and not self._outbox and len(self._in_flight) < self._window()

    @property
    def idle(self) -> bool:
        """Whether the broker has acknowledged everything given to `send`."""
        return not self._outbox and not self._in_flight

    @property
    def unacknowledged(self) -> int:
        """Messages published that the broker has not acknowledged yet."""
        return len(self._in_flight)

    @property
    def max_packet_size(self) -> int:
        """Maximum size of a packet in bytes, as the broker announced it or as experience shows; 0 means no limit."""
        limits = [limit for limit in (self._max_packet_size, self._suspects.size_limit(time.monotonic())) if limit]
        return min(limits, default=0)

    def wake(self) -> None:
        """Make a waiting `step` return. Any thread may call this."""
        self._waker.wake()

    def send(self, message: Outgoing) -> None:
        """Publish as soon as possible; if too much is queued, the oldest messages are dropped and counted.

        Those with `on_settled` are not.
        """
        if not message.durable and not self._ready:
            return
        self._outbox.append(message)
        self._outbox_bytes += message.packet_bytes
        while len(self._outbox) > 1 and (len(self._outbox) > MAX_OUTBOX or self._outbox_bytes > MAX_OUTBOX_BYTES):
            place = next((place for place, queued in enumerate(self._outbox) if queued.on_settled is None), None)
            if place is None:
                break
            oldest = self._outbox[place]
            del self._outbox[place]
            self._outbox_bytes -= oldest.packet_bytes
            self._suspects.forget(oldest)
            self.dropped += 1
        self._send_queued()

    def _take(self) -> Outgoing:
        oldest = self._outbox.popleft()
        self._outbox_bytes -= oldest.packet_bytes
        return oldest

    def holds(self, message: Outgoing) -> bool:
        """Whether an equal message, or its fallback, waits to be sent or to be acknowledged."""
        return any(held in (message, message.fallback) for held in (*self._outbox, *self._in_flight.values()))

    def step(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the network, the next retry or `wake`, and handle what arrived.

        Never raises: an error ends the current connection only.
        """
        try:
            if self._client is None and time.monotonic() >= self._retry_at:
                self._connect()
            self._wait(timeout_s)
        except Exception as exc:  # noqa: BLE001 - the boundary to paho and the network
            _log.exception("mqtt: an error ended the connection")
            self._connection_lost(f"internal error: {exc}")

    def drop(self) -> None:
        """Close the socket without DISCONNECT, so that the broker publishes the Will Message."""
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            close_quietly(client.socket())

    def close(self) -> None:
        """Send DISCONNECT, so that the broker discards the Will Message, and close the sockets."""
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            sock = client.socket()
            client.disconnect()
            deadline = time.monotonic() + 1.0
            while client.want_write() and client.socket() is not None and time.monotonic() < deadline:
                poll(0.1, write=client.socket())
                client.loop_write()
            close_quietly(sock)
        self._waker.close()

    # Connecting.

    def _connect(self) -> None:
        try:
            client = self._new_client()
        except (OSError, ValueError) as exc:
            self._connection_lost(f"cannot use the configuration: {exc}", "check mqtt.password_file and mqtt.ca_file")
            return
        self._client = client
        self._connecting = True
        try:
            client.connect(
                self._config.host or "",
                self._config.port,
                keepalive=self._config.keepalive_s,
                clean_start=False,
                properties=self._connect_properties(),
            )
            # Otherwise a reply waits up to 40 ms for the broker's delayed TCP ACK of our PUBACK.
            sock: Any = client.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError) as exc:
            self._connection_lost(f"cannot reach the broker at {self._address()}: {exc}", _hint(exc))
        finally:
            self._connecting = False

    def _new_client(self) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if config.username is not None:
            password = None
            if config.password_file is not None:
                # Read for every connection, because it may have been replaced. Editors add a newline at the end.
                password = config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
            client.username_pw_set(config.username, password)
        if config.tls:
            client.tls_set_context(
                ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file is not None else None)
            )
        will = self._listener.will()
        retain = will.retain and self._retain_available
        client.will_set(will.topic, will.payload, qos=1, retain=retain, properties=will.properties(will=True))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    def _connect_properties(self) -> Properties:
        properties = new_properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._config.session_expiry_s
        # A request slightly over the limit still gets an error reply; the broker discards a much larger one.
        properties.ReceiveMaximum = _MAX_UNACKNOWLEDGED
        properties.MaximumPacketSize = 2 * self._config.max_payload_bytes + 65_536
        return properties

    def _address(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    # paho's callbacks; they run inside `_wait`, so `step` catches their exceptions.

    def _on_connect(self, client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.value == _RETAIN_NOT_SUPPORTED and self._retain_available:
            # The Will Message was to be retained.
            self._retain_available = False
            self._failures = 0
            return
        if reason.is_failure:
            self._min_backoff_s = REFUSED_BACKOFF_S
            hint = "check mqtt.username and mqtt.password_file" if reason.value in (0x86, 0x87) else None
            if reason.value == 0x84:
                hint = "edgekit needs a broker with MQTT 5"
            self._log_change(logging.WARNING, f"the broker at {self._address()} refused the connection: {reason}", hint)
            return
        self._max_packet_size = getattr(properties, "MaximumPacketSize", 0)
        self._retain_available = bool(getattr(properties, "RetainAvailable", 1))
        if not self._retain_available:
            _log.warning(
                "mqtt: the broker keeps no retained messages, so callers cannot see whether the device is online "
                "(hint: allow them in the broker)"
            )
        self._receive_maximum = min(RECEIVE_MAXIMUM, getattr(properties, "ReceiveMaximum", 65_535))
        self._session_present = bool(flags.session_present)
        # A retained message is not a request: it would arrive on every subscription, and no caller waits for it. One
        # that arrives now shows as retained only with Retain As Published.
        options = SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(topic, options) for topic in self._subscriptions])

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        denied = [
            f"{topic} ({reason})"
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if denied:
            self._min_backoff_s = REFUSED_BACKOFF_S
            self._subscribe_refusal = (
                f"the broker at {self._address()} refused the subscription to {', '.join(denied)}",
                f"allow it in the broker's access control list for the user {self._config.username!r}",
            )
            return
        self._ready = True
        self._connected_at = time.monotonic()
        self.connections += 1
        session = "session resumed" if self._session_present else "new session"
        self._log_change(logging.INFO, f"connected to the broker at {self._address()} as {self._client_id} ({session})")
        self._listener.on_ready()
        self._send_queued()

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        receipt = self._receipts.add(message.mid, message.qos)
        ack = partial(self._receipts.settle, receipt, client.ack)
        try:
            self._listener.on_message(message, ack)
        except Exception:  # noqa: BLE001 - the boundary to hostile input
            # Acknowledged all the same: delivered again it would only fail again.
            _log.exception("mqtt: handling a message failed")
            ack()

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        message = self._in_flight.pop(mid, None)
        if message is None:
            return
        self._suspects.acknowledged(message, taken=not reason.is_failure)
        if reason.value == NO_MATCHING_SUBSCRIBERS:
            if message.on_no_subscribers is not None:
                message.on_no_subscribers()
        elif reason.is_failure:
            self.dropped += 1
            # Rate-limited, because any client that can publish may name a topic that we may not publish to.
            self._refused.warning(f"mqtt: the broker refused a message on {message.topic}: {reason}")
        _settle(message)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.value == _SESSION_TAKEN_OVER:
            self._min_backoff_s = REFUSED_BACKOFF_S
            message = f"the broker at {self._address()} gave our session to another client"
            self._disconnect_reason = (message, self._duplicate_id_hint())
        else:
            why = "the connection broke" if reason.value == _UNSPECIFIED else str(reason)
            self._disconnect_reason = (f"lost the broker at {self._address()}: {why}", None)

    def _duplicate_id_hint(self) -> str:
        return f"if another client uses the id {self._client_id}, give each device its own mqtt.device_id"

    # Sending and receiving.

    def _wait(self, timeout_s: float) -> None:
        client = self._client
        sock = client.socket() if client is not None else None
        if client is not None and sock is None:
            # It broke while a message was sent or acknowledged.
            self._connection_lost(*self._lost_reason())
            return
        if client is None or sock is None:
            poll(min(timeout_s, max(0.0, self._retry_at - time.monotonic())), read=(self._waker.reader,))
            self._waker.drain()
            return
        # TLS may have buffered a decrypted packet, so that the socket is not readable.
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        wait_s = 0.0 if pending else timeout_s
        poll(wait_s, read=(sock, self._waker.reader), write=sock if client.want_write() else None)
        self._waker.drain()
        # The socket is non-blocking, so a needless attempt costs one system call.
        if client.want_write():
            client.loop_write()
        self._read(client)
        if client.socket() is not None:
            client.loop_misc()
        self._send_queued()
        if self._subscribe_refusal is not None:
            self._connection_lost(*self._subscribe_refusal)
        elif client.socket() is None:
            self._connection_lost(*self._lost_reason())

    @staticmethod
    def _read(client: paho.Client) -> None:
        """Read what has arrived: paho reads one packet at a time, and the listener handles many at less cost."""
        for _ in range(_MAX_PACKETS):
            sock = client.socket()
            if sock is None:
                return
            client.loop_read()
            buffered = isinstance(sock, ssl.SSLSocket) and sock.fileno() >= 0 and sock.pending() > 0
            if not buffered and (sock.fileno() < 0 or not readable(sock)):
                return

    def _lost_reason(self) -> tuple[str, str | None]:
        return self._disconnect_reason or (f"lost the broker at {self._address()}", None)

    def _send_queued(self) -> None:
        """Give messages to paho, at most Receive Maximum in flight: paho's own queue is unbounded."""
        client = self._client
        while client is not None and self._ready and self._outbox and len(self._in_flight) < self._window():
            message: Outgoing | None = self._take()
            limit = self.max_packet_size
            while message is not None and limit and message.packet_bytes > limit:
                self._suspects.forget(message)
                if message.fallback is None:
                    self.dropped += 1
                    self._too_large.warning(
                        f"mqtt: a message on {message.topic} exceeds the broker's maximum packet size"
                    )
                    _settle(message)
                message = message.fallback
            if message is None:
                continue
            published = client.publish(
                message.topic,
                message.payload,
                qos=1,
                retain=message.retain and self._retain_available,
                properties=message.properties(),
            )
            # Kept until the broker acknowledges it, whatever `rc` says; `_wait` notices a broken connection.
            self._in_flight[published.mid] = message
            if published.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return

    def _window(self) -> int:
        """How many messages may be in flight: only one while it, or the next one, is under suspicion."""
        watched = [*self._in_flight.values(), *([self._outbox[0]] if self._outbox else [])]
        return 1 if any(self._suspects.suspected(message) for message in watched) else self._receive_maximum

    def _give_up_on(self, message: Outgoing) -> Outgoing | None:
        """Return what to send in place of a message that the broker does not take: its error, or nothing."""
        self.dropped += 1
        _log.warning(
            "mqtt: %d connections in a row broke while the broker had a message of %d bytes on %s; it is %s",
            MAX_LOSSES,
            message.packet_bytes,
            message.topic,
            "dropped" if message.fallback is None else "replaced by an error",
        )
        if message.fallback is None:
            _settle(message)
        return message.fallback

    def _connection_lost(self, message: str, hint: str | None = None) -> None:
        """Drop the client, requeue unacknowledged messages, and schedule the next attempt."""
        client, self._client = self._client, None
        self._disconnect_reason = self._subscribe_refusal = None
        if client is not None:
            close_quietly(client.socket())
        self._receipts.clear()
        lost = [*self._in_flight.values()]
        refused = self._suspects.lost(lost, time.monotonic())
        if refused:
            # The message is to blame, not the network nor another client with our id.
            self._failures = self._short_connections = 0
        elif self._ready:
            if time.monotonic() - self._connected_at > STABLE_AFTER_S:
                self._failures = self._short_connections = 0
            else:
                self._short_connections += 1
            if self._short_connections >= _MAX_SHORT_CONNECTIONS:
                self._short_connections = 0
                self._min_backoff_s = REFUSED_BACKOFF_S
                hint = hint or self._duplicate_id_hint()
        self._ready = False
        self._in_flight.clear()
        again = [self._give_up_on(message) if id(message) in refused else message for message in lost]
        self._outbox = deque(item for item in (*again, *self._outbox) if item is not None and item.durable)
        self._outbox_bytes = sum(item.packet_bytes for item in self._outbox)
        delay_s = max(self._min_backoff_s, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self._failures))
        delay_s = min(BACKOFF_MAX_S, delay_s * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not cryptography
        # A refusal has been logged with its reason; the disconnect that follows it adds nothing.
        if self._min_backoff_s == 0.0 or hint is not None:
            self._log_change(logging.WARNING, message, hint)
        self._failures = min(self._failures + 1, 10)
        self._min_backoff_s = 0.0
        self._retry_at = time.monotonic() + delay_s

    def _log_change(self, level: int, message: str, hint: str | None = None) -> None:
        """Log a change of state, but not the same message twice in a row."""
        if message != self._last_log:
            self._last_log = message
            retrying = "" if level < logging.WARNING else "; retrying"
            _log.log(level, "mqtt: %s%s%s", message, retrying, f" (hint: {hint})" if hint else "")


def _settle(message: Outgoing) -> None:
    if message.on_settled is not None:
        message.on_settled()


def _hint(exc: Exception) -> str | None:
    if isinstance(exc, ssl.SSLError):
        return "check mqtt.tls, mqtt.ca_file and mqtt.port"
    if isinstance(exc, socket.gaierror):
        return "check mqtt.host"
    return None
