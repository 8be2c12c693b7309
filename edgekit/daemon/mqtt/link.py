"""The connection to the broker: made, kept, made again. It knows no chat and no scheduler.

One thread drives it through `step`, and everything below runs on that thread (paho's own loop thread would die
of an exception in a callback while `is_connected()` stayed true). Every connection gets a fresh paho client, so
a packet id of an old connection cannot be acknowledged on a new one. What the broker has not confirmed is kept
here and sent again after a reconnect. The file is long because all three share one state.
"""

from __future__ import annotations

import logging
import math
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.outgoing import Outgoing, new_properties

__all__ = ["Link", "Listener"]

_log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0
REFUSED_BACKOFF_S = 30.0
"""Wrong credentials do not mend themselves within a second."""
STABLE_AFTER_S = 30.0
"""A connection that lasted this long was a good one: the next failure starts the backoff anew."""

MAX_UNCONFIRMED = 16
MAX_OUTBOX = 1024
NO_MATCHING_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E
_UNSPECIFIED = 0x80
_SUSPICIOUS = 3
"""Short connections in a row after which a rival is suspected: not every broker says that it gave a session away."""


class Listener(Protocol):
    """What the link tells its owner, always on the thread that calls `step`."""

    def will(self) -> Outgoing:
        """The will of the connection about to be made."""

    def on_ready(self) -> None:
        """Connected, and every subscription granted."""

    def on_message(self, message: paho.MQTTMessage) -> None:
        """A message came; it is acknowledged when this returns, or raises."""


class Link:
    """Keeps one MQTT 5 session with the configured broker.

    Args:
        config: The door's configuration; `host` must be set.
        client_id: Names the session at the broker.
        subscriptions: Topics to subscribe to at QoS 1.
        listener: Is told of what happens.
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
        self._short_lived = 0
        self._retry_at = 0.0
        self._hold_s = 0.0
        self._last_log = ""
        self._goodbye: tuple[str, str | None] | None = None
        self._denied: tuple[str, str | None] | None = None
        self._session_present = False
        self._max_packet = 0
        self._retain_available = True
        self._receive_maximum = MAX_UNCONFIRMED
        self._outbox: deque[Outgoing] = deque()
        self._unconfirmed: dict[int, Outgoing] = {}
        self._wake_lock = threading.Lock()
        self._wake_sent = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.settimeout(0)
        self.connections = 0
        self.dropped = 0

    @property
    def ready(self) -> bool:
        """Whether messages can be received and sent now."""
        return self._ready

    @property
    def relaxed(self) -> bool:
        """Whether a message given to `send` now would leave at once: the sender's cue to gather more first."""
        return self._ready and not self._outbox and len(self._unconfirmed) < self._receive_maximum

    @property
    def settled(self) -> bool:
        """Whether everything given to `send` has been confirmed."""
        return not self._outbox and not self._unconfirmed

    @property
    def max_packet(self) -> int:
        """The broker's Maximum Packet Size in bytes; 0 means that it named none."""
        return self._max_packet

    def wake(self) -> None:
        """Make a waiting `step` return. Any thread may call this."""
        with self._wake_lock:
            if not self._wake_sent and self._wake_write.fileno() >= 0:
                self._wake_sent = True
                self._wake_write.send(b"\0")

    def send(self, message: Outgoing) -> None:
        """Publish as soon as possible; when too many wait, the oldest is dropped and counted."""
        if not message.lasting and not self._ready:
            return
        self._outbox.append(message)
        if len(self._outbox) > MAX_OUTBOX:
            self._outbox.popleft()
            self.dropped += 1
        self._pump()

    def step(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the network, a retry's time or `wake`, and handle what there is.

        Never raises: whatever goes wrong with a connection ends that connection only.
        """
        try:
            if self._client is None and time.monotonic() >= self._retry_at:
                self._connect()
            self._wait(timeout_s)
        except Exception as exc:  # noqa: BLE001 - the boundary to paho and the network
            _log.exception("mqtt: an error ended the connection")
            self._lost(f"internal error: {exc}")

    def abandon(self) -> None:
        """Drop the connection without a word, so that the broker publishes the will."""
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            _close(client.socket())

    def close(self) -> None:
        """Leave the broker in good order (no will is published) and release the sockets."""
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            sock = client.socket()
            client.disconnect()
            deadline = time.monotonic() + 1.0
            while client.want_write() and client.socket() is not None and time.monotonic() < deadline:
                _poll(0.1, write=client.socket())
                client.loop_write()
            _close(sock)
        with self._wake_lock:
            self._wake_read.close()
            self._wake_write.close()

    # Connecting.

    def _connect(self) -> None:
        try:
            client = self._new_client()
        except (OSError, ValueError) as exc:
            self._lost(f"cannot use the configuration: {exc}", "check mqtt.password_file and mqtt.ca_file")
            return
        self._client = client
        try:
            client.connect(
                self._config.host or "",
                self._config.port,
                keepalive=self._config.keepalive_s,
                clean_start=False,
                properties=self._connect_properties(),
            )
            # Otherwise a reply waits up to 40 ms for the broker's delayed TCP acknowledgement of our PUBACK.
            sock: Any = client.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError) as exc:
            self._lost(f"cannot reach the broker at {self._where()}: {exc}", _hint(exc))

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
                # Read anew each time: the operator may have replaced it. Editors end files with a newline.
                password = config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
            client.username_pw_set(config.username, password)
        if config.tls:
            client.tls_set_context(
                ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file is not None else None)
            )
        will = self._listener.will()
        client.will_set(will.topic, will.payload, qos=1, retain=will.retain, properties=will.properties(will=True))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    def _connect_properties(self) -> Properties:
        properties = new_properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._config.session_expiry_s
        # A request somewhat too large still gets an error reply; a huge one the broker keeps to itself.
        properties.MaximumPacketSize = 2 * self._config.max_payload_bytes + 65_536
        return properties

    def _where(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    # paho's callbacks; they run inside `_wait`, hence inside the guard of `step`.

    def _on_connect(self, client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._hold_s = REFUSED_BACKOFF_S
            hint = "check mqtt.username and mqtt.password_file" if reason.value in (0x86, 0x87) else None
            if reason.value == 0x84:
                hint = "edgekit needs a broker that speaks MQTT 5"
            self._say(logging.WARNING, f"the broker at {self._where()} refused us: {reason}", hint)
            return
        self._max_packet = getattr(properties, "MaximumPacketSize", 0)
        self._retain_available = bool(getattr(properties, "RetainAvailable", 1))
        self._receive_maximum = min(MAX_UNCONFIRMED, getattr(properties, "ReceiveMaximum", 65_535))
        self._session_present = bool(flags.session_present)
        # Retained messages are no requests: nobody waits for their answers, and they would come again and again.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(topic, options) for topic in self._subscriptions])

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        denied = [
            f"{topic} ({reason})"
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if denied:
            self._hold_s = REFUSED_BACKOFF_S
            self._denied = (
                f"the broker at {self._where()} refused the subscription to {', '.join(denied)}",
                f"allow it in the broker's access list for the user {self._config.username!r}",
            )
            return
        self._ready = True
        self._connected_at = time.monotonic()
        self.connections += 1
        session = "session resumed" if self._session_present else "new session"
        self._say(logging.INFO, f"connected to the broker at {self._where()} as {self._client_id} ({session})")
        self._listener.on_ready()
        self._pump()

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            self._listener.on_message(message)
        except Exception:  # noqa: BLE001 - the boundary to hostile input
            # Whatever it was, the same message would do it again: it is acknowledged all the same.
            _log.exception("mqtt: a message could not be handled")
        client.ack(message.mid, message.qos)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        message = self._unconfirmed.pop(mid, None)
        if message is None:
            return
        if reason.value == NO_MATCHING_SUBSCRIBERS:
            if message.on_unheard is not None:
                message.on_unheard()
        elif reason.is_failure:
            self.dropped += 1
            _log.warning("mqtt: the broker refused a message on %s: %s", message.topic, reason)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.value == _SESSION_TAKEN_OVER:
            self._hold_s = REFUSED_BACKOFF_S
            self._goodbye = (f"the broker at {self._where()} gave our session to another client", self._rival_hint())
        else:
            why = "the connection broke" if reason.value == _UNSPECIFIED else str(reason)
            self._goodbye = (f"lost the broker at {self._where()}: {why}", None)

    def _rival_hint(self) -> str:
        return f"if another client calls itself {self._client_id}, give each device its own mqtt.device_id"

    # Working.

    def _wait(self, timeout_s: float) -> None:
        client = self._client
        sock = client.socket() if client is not None else None
        if client is None or sock is None:
            _poll(min(timeout_s, max(0.0, self._retry_at - time.monotonic())), read=(self._wake_read,))
            self._drain_wake()
            return
        # TLS may hold a decrypted packet that the socket no longer shows.
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        _poll(0.0 if pending else timeout_s, read=(sock, self._wake_read), write=sock if client.want_write() else None)
        self._drain_wake()
        # The socket does not block, so trying costs one system call.
        if client.want_write():
            client.loop_write()
        if client.socket() is not None:
            client.loop_read()
        if client.socket() is not None:
            client.loop_misc()
        self._pump()
        if self._denied is not None:
            self._lost(*self._denied)
        elif client.socket() is None:
            self._lost(*(self._goodbye or (f"lost the broker at {self._where()}", None)))

    def _drain_wake(self) -> None:
        with self._wake_lock:
            if self._wake_sent:
                self._wake_read.recv(16)
                self._wake_sent = False

    def _pump(self) -> None:
        """Hand messages to paho, never more than may be unconfirmed at once: its own queue has no bound."""
        client = self._client
        while client is not None and self._ready and self._outbox and len(self._unconfirmed) < self._receive_maximum:
            message: Outgoing | None = self._outbox.popleft()
            while message is not None and self._max_packet and message.packet_bytes > self._max_packet:
                if message.fallback is None:
                    self.dropped += 1
                    _log.warning("mqtt: a message on %s exceeds the broker's packet size", message.topic)
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
            # Whatever became of it, it is owed until the broker confirms it; a broken connection shows in `_wait`.
            self._unconfirmed[published.mid] = message
            if published.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return

    def _lost(self, message: str, hint: str | None = None) -> None:
        """Forget the connection, keep what it owed, and choose when to try again."""
        client, self._client = self._client, None
        self._goodbye = self._denied = None
        if client is not None:
            _close(client.socket())
        if self._ready:
            if time.monotonic() - self._connected_at > STABLE_AFTER_S:
                self._failures = self._short_lived = 0
            else:
                self._short_lived += 1
            if self._short_lived >= _SUSPICIOUS:
                self._short_lived = 0
                self._hold_s = REFUSED_BACKOFF_S
                hint = hint or self._rival_hint()
        self._ready = False
        owed = [*self._unconfirmed.values(), *self._outbox]
        self._unconfirmed.clear()
        self._outbox = deque(item for item in owed if item.lasting)
        delay_s = max(self._hold_s, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**self._failures))
        delay_s = min(BACKOFF_MOST_S, delay_s * random.uniform(1.0, 1.5))  # noqa: S311 - spreads devices, hides nothing
        # A refusal was logged with its reason; that the refusing broker then hangs up adds nothing.
        if self._hold_s == 0.0 or hint is not None:
            self._say(logging.WARNING, message, hint)
        self._failures = min(self._failures + 1, 10)
        self._hold_s = 0.0
        self._retry_at = time.monotonic() + delay_s

    def _say(self, level: int, message: str, hint: str | None = None) -> None:
        """Log a change of state, once, however often it is found again."""
        if message != self._last_log:
            self._last_log = message
            retrying = "" if level < logging.WARNING else "; retrying"
            _log.log(level, "mqtt: %s%s%s", message, retrying, f" (hint: {hint})" if hint else "")


def _hint(exc: Exception) -> str | None:
    if isinstance(exc, ssl.SSLError):
        return "check mqtt.tls, mqtt.ca_file and mqtt.port"
    if isinstance(exc, socket.gaierror):
        return "check mqtt.host"
    return None


def _poll(timeout_s: float, *, read: tuple[Any, ...] = (), write: Any = None) -> None:
    """Wait for any of these sockets; unlike select(), poll() takes file descriptors above 1,023."""
    poller = select.poll()
    for sock in read:
        poller.register(sock, select.POLLIN)
    if write is not None:
        poller.register(write, select.POLLIN | select.POLLOUT)
    poller.poll(max(0, math.ceil(timeout_s * 1000)))


def _close(sock: Any) -> None:
    if sock is not None:
        try:
            sock.close()
        except OSError:
            _log.debug("mqtt: closing a socket failed", exc_info=True)
