"""The MQTT service: submits requests from the broker to the engine worker and publishes its events as messages.

One thread does everything but the preparation of requests, which has its own; that one and the engine worker's only
enqueue what happened.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from edgekit.config import MqttConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.access.identity import Identity
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.metrics import Metrics, MqttStats
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.attempts import Attempts
from edgekit.daemon.mqtt.connection import Connection
from edgekit.daemon.mqtt.crash_marks import CrashMarks
from edgekit.daemon.mqtt.home_assistant import HomeAssistant
from edgekit.daemon.mqtt.incoming import Incoming
from edgekit.daemon.mqtt.intake import Intake, Submitter
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.presence import Presence
from edgekit.daemon.mqtt.requests import CachedReply, OpenRequest, ReplyCache, ReplyTo, RequestKey
from edgekit.daemon.mqtt.senders import Senders
from edgekit.daemon.mqtt.state_topic import StateTopic
from edgekit.daemon.mqtt.topics import Topics, check_reply_topic, reply_roots
from edgekit.daemon.rare_log import RareLog
from edgekit.daemon.readings import Readings
from edgekit.device_id import device_id
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.engine.worker import shutting_down
from edgekit.generation.model import ModelInfo
from edgekit.generation.types import Event, Failure, Finished

__all__ = ["MqttService"]

_log = logging.getLogger(__name__)

IDLE_WAIT_S = 1.0
STOP_GRACE_S = 3.0
FLUSH_GRACE_S = 2.0
MAX_DELTA_CHARS = 4096


class MqttService:
    """Serves chats over MQTT until `stop`. It may start before the model is loaded, with a worker that refuses them.

    Args:
        config: The configuration; `host` must be set.
        worker: Receives the requests.
        info: The model, for the info message and the `model` fields; without a `runner` until it is loaded.
        metrics: Where requests are counted; one of its own unless given.
        state: Folder of files that survive a restart, made if it is missing; None keeps nothing.
        device: Returns the board and its sensors, for the status; None leaves them out.
        engine: Returns how far the engine is that the daemon builds, for the status.
        access: The limits of users, and the audit log; None has none.
        readings: Reads load and sensors, for the state topic and Home Assistant; None leaves both out.

    Raises:
        ConfigError: The prefix or the device id is not valid in a topic.
    """

    def __init__(
        self,
        config: MqttConfig,
        worker: Submitter,
        info: ModelInfo,
        metrics: Metrics | None = None,
        state: Path | None = None,
        *,
        device: Callable[[], Mapping[str, object]] | None = None,
        engine: Callable[[], BuildState | None] = lambda: None,
        access: Access | None = None,
        readings: Readings | None = None,
    ) -> None:
        self.topics = Topics(config.prefix, config.device_id or device_id())
        self.metrics = metrics or Metrics()
        access = access or Access(metrics=self.metrics)
        self._senders = Senders(access, self.topics, require_user=config.require_user)
        self._config = config
        self._info = info
        folder = None if state is None else _own_folder(state / "mqtt" / self.topics.client_id)
        self._state = self._home_assistant = None
        if readings is not None:
            self._state = StateTopic(self.topics, readings, config.state_interval_s)
            self._home_assistant = HomeAssistant(config, self.topics, readings, folder and folder / "home-assistant")
        heard = () if self._home_assistant is None else self._home_assistant.subscriptions
        self._connection = Connection(
            config,
            client_id=self.topics.client_id,
            subscriptions=(*self.topics.subscriptions, *heard),
            listener=self,
        )
        self._presence = Presence(self.topics, info, device, engine)
        self._repeated = self._no_subscribers = 0
        self.metrics.watch_mqtt(self.stats)
        self._refusals = RareLog(_log)
        self._requests: dict[RequestKey, OpenRequest] = {}
        self._reply_cache = ReplyCache()
        self._attempts = Attempts(folder and folder / "attempts")
        marks = CrashMarks(folder and folder / "preparing")
        self._intake = Intake(worker, info, self.metrics, marks, happen=self._happen, access=access)
        self._happened: deque[tuple[OpenRequest, Callable[[], None]]] = deque()
        self._publications: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._heartbeat = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether requests can arrive now."""
        return self._connection.ready

    def stats(self) -> MqttStats:
        """Return the counters and gauges that the metrics show; any thread may call this."""
        connection = self._connection
        return MqttStats(
            connected=connection.ready,
            reconnects=max(0, connection.connections - 1),
            unacknowledged=connection.unacknowledged,
            dropped=connection.dropped,
            repeated=self._repeated,
            no_subscribers=self._no_subscribers,
        )

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the last iteration of the service's thread; 0 while it connects, or is not running."""
        idle = self._thread is None or self._connection.connecting
        return 0.0 if idle else time.monotonic() - self._heartbeat

    def seconds_preparing(self) -> float:
        """Seconds for which the current request is being prepared; 0 without one."""
        return self._intake.seconds_since_heartbeat()

    def start(self) -> None:
        """Start the thread that connects and reconnects; an unreachable broker is not an error."""
        _log.info("mqtt: this device is `%s`; requests go to %s", self.topics.device, self.topics.request)
        self._intake.start()
        self._heartbeat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="edgekit-mqtt", daemon=True)
        self._thread.start()

    def describe(self, info: ModelInfo) -> None:
        """Publish info message and status again, with this description of the model; any thread may call this."""

        def publish() -> None:
            self._info = info
            self._presence.describe(info)
            self._intake.describe(info)
            self.on_ready()

        self._publications.append(publish)
        self._connection.wake()

    def attach(self, worker: Submitter, info: ModelInfo) -> None:
        """Submit requests to this worker from now on, and describe its model; any thread may call this."""
        self._intake.attach(worker)
        self.describe(info)

    def refresh(self) -> None:
        """Publish the status again, because of what changed in it; any thread may call this."""
        self._publications.append(lambda: self._connection.send(self._presence.online()))
        self._connection.wake()

    def stop(self) -> None:
        """Cancel open requests, send their last messages, publish `offline` and disconnect. May be called again."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            self._connection.close()
        else:
            self._connection.wake()
            thread.join()

    # The service's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._run_once(self._next_wait_s())
            self._finish()
        except Exception:  # noqa: BLE001 - the thread's outermost handler
            # No known error ends here. Dropping the connection makes the broker publish the Will Message.
            _log.exception("mqtt: the service stopped after an error")
            self._connection.drop()
        finally:
            self._connection.close()

    def _run_once(self, wait_s: float) -> None:
        self._connection.step(wait_s)
        self._heartbeat = time.monotonic()
        while self._publications:
            self._publications.popleft()()
        while self._happened:
            self._guarded(*self._happened.popleft())
        for request in [*self._requests.values()]:
            self._guarded(request, partial(self._flush, request))
        due = self._presence.publish_due
        if due is not None and time.monotonic() >= due:
            self._connection.send(self._presence.online())
        if self._connection.ready:
            self._publish_state()

    def _publish_state(self) -> None:
        """Publish the state if it is due, and the announcement to Home Assistant."""
        if self._home_assistant is not None and self._home_assistant.due is not None:
            if time.monotonic() >= self._home_assistant.due:
                # What it has missed, too, if the broker keeps no retained messages.
                self.on_ready()
        elif self._state is not None:
            message = self._state.poll(self._presence.session, self._info)
            if message is not None:
                self._connection.send(message)

    def _next_wait_s(self) -> float:
        now = time.monotonic()
        due: list[float] = []
        if self._connection.can_send_now:
            due += [request.flush_at for request in self._requests.values() if request.pending]
        if self._presence.publish_due is not None:
            due.append(self._presence.publish_due)
        if self._connection.ready and self._home_assistant is not None and self._home_assistant.due is not None:
            due.append(self._home_assistant.due)
        return max(0.0, min([IDLE_WAIT_S, *(at - now for at in due)]))

    def _finish(self) -> None:
        for request in self._requests.values():
            request.cancel()
        deadline = time.monotonic() + STOP_GRACE_S
        while self._requests and time.monotonic() < deadline:
            self._run_once(0.05)
        self._intake.stop()
        # What is not prepared is not acknowledged, and so delivered again after the next start.
        for request in [request for request in self._requests.values() if request.prepared]:
            request.cancel()
            self._on_event(request, Failure(shutting_down()))
            self._flush(request)
        if self._connection.ready:
            self._connection.send(self._presence.offline())
        deadline = time.monotonic() + FLUSH_GRACE_S
        while self._connection.ready and not self._connection.idle and time.monotonic() < deadline:
            self._connection.step(0.05)

    # Callbacks of the connection.

    def will(self) -> Outgoing:
        """Return the `offline` of the next connection."""
        self._presence.begin()
        return self._presence.offline()

    def on_ready(self) -> None:
        """Publish the info message and presence, now that requests can arrive."""
        config = self._config
        self._connection.send(self._presence.info(config.max_payload_bytes, user_required=config.require_user))
        self._connection.send(self._presence.online())
        if self._state is not None:
            self._connection.send(self._state.birth(self._presence.session, self._info))
        if self._home_assistant is not None:
            for message in self._home_assistant.announcement():
                self._connection.send(message)

    def on_message(self, message: paho.MQTTMessage, ack: Callable[[], None]) -> None:
        """Handle a request, a cancellation, or a message on our status topic or Home Assistant's."""
        if self._home_assistant is not None and self._home_assistant.receive(message.topic, bytes(message.payload)):
            ack()
            return
        if message.topic != self.topics.status and not message.retain:
            try:
                user = self.topics.user_of(message.topic)
            except RequestError as exc:
                self._refuse(None, exc)
                ack()
                return
            if message.topic.startswith(self.topics.request):
                self._on_request(Incoming.of(message, user), ack)
                return
            self._on_cancel(Incoming.of(message, user))
        ack()
        if message.topic == self.topics.status:
            if not self._stopping.is_set():
                self._presence.on_status(bytes(message.payload))
        elif message.retain:
            _log.debug("mqtt: ignored a retained message on %s", message.topic)

    # Requests.

    def _on_request(self, incoming: Incoming, ack: Callable[[], None]) -> None:
        request_id: str | None = None
        problem: EdgekitError | None = None
        body: dict[str, Any] = {}
        try:
            body = self._read(incoming.payload)
        except RequestError as exc:
            problem = exc
        if isinstance(body.get("id"), str):
            request_id = messages.clean_id(body["id"])
        try:
            topic = check_reply_topic(
                body.get("reply_to") if incoming.response_topic is None else incoming.response_topic,
                prefix=self._config.prefix,
                allowed=reply_roots(incoming.user, self._config.reply_prefixes),
            )
        except RequestError as exc:
            refused = exc if problem is None or incoming.response_topic is not None else problem
            self._senders.not_submitted(request_id, incoming.user, refused.code)
            self._refuse(request_id, refused)
            ack()
            return
        reply_to = ReplyTo(topic, incoming.correlation)
        if problem is None:
            try:
                identity = self._senders.identify(incoming.user)
                self._accept(messages.read_envelope(body), reply_to, incoming, identity, ack)
            except EdgekitError as exc:
                problem = exc
            except Exception:  # noqa: BLE001 - the caller waits for a reply, whatever failed
                _log.exception("mqtt: a request failed")
                problem = EdgekitError("the request failed inside the daemon", hint="see the daemon's log")
        if problem is not None:
            self.metrics.refused("mqtt", problem)
            self._senders.not_submitted(request_id or incoming.implied_id, incoming.user, problem.code)
            self._send_error(reply_to, request_id or incoming.implied_id, self._attempts.next(), problem)
            ack()

    def _read(self, payload: bytes) -> dict[str, Any]:
        if len(payload) > self._config.max_payload_bytes:
            raise RequestError(
                f"the payload has {len(payload)} bytes; at most {self._config.max_payload_bytes} are allowed",
                hint="shorten the messages",
                code="body_too_large",
            )
        return messages.read_object(payload)

    def _accept(
        self,
        envelope: messages.Envelope,
        reply_to: ReplyTo,
        incoming: Incoming,
        identity: Identity,
        ack: Callable[[], None],
    ) -> None:
        """Take a request that can be answered: repeat an answer, or have the request prepared."""
        given_id = envelope.id or incoming.implied_id
        request_id = given_id or f"chat-{uuid.uuid4().hex}"
        key, digest = (reply_to.topic, request_id, incoming.user), envelope.digest()
        running = self._requests.get(key)
        if running is None and given_id is None and incoming.again:
            running = self._unprepared_twin(reply_to.topic, incoming.user, digest)
        if running is not None:
            if running.digest != digest:
                raise RequestError(
                    "another request with this id is in progress",
                    hint="give every request its own id, such as a UUID",
                    code="id_in_use",
                    param="id",
                )
            self._repeated += 1
            self._senders.not_submitted(request_id, incoming.user, "repeated")
            running.reply_to = reply_to
            if running.prepared:
                ack()
            else:
                running.acks.append(ack)
            return
        cached = self._reply_cache.get(key, digest, time.monotonic())
        if cached is not None:
            self._repeated += 1
            self._senders.not_submitted(request_id, incoming.user, "repeated")
            final = self._final(reply_to, request_id, cached.attempt, cached.payload)
            # A request that the broker delivers again after a lost connection often comes before its answer has left.
            if not self._connection.holds(final):
                self._connection.send(final)
            ack()
            return
        request = OpenRequest(
            key,
            request_id,
            self._attempts.next(),
            id_given=given_id is not None,
            reply_to=reply_to,
            stream=envelope.stream,
            digest=digest,
            received=time.monotonic(),
            acks=[ack],
            size=len(incoming.payload),
            identity=identity,
        )
        self._intake.add(request, envelope, incoming.expiry_s, on_prepared=self._on_prepared, on_event=self._on_event)
        self._requests[key] = request

    def _unprepared_twin(self, topic: str, user: str | None, digest: bytes) -> OpenRequest | None:
        """Return the request without an id, still in preparation, that a redelivery repeats."""
        for request in self._requests.values():
            same = (request.key[0], request.key[2], request.digest) == (topic, user, digest)
            if same and not (request.prepared or request.id_given):
                return request
        return None

    def _on_prepared(self, request: OpenRequest, problem: EdgekitError | None) -> None:
        request.prepared = True
        try:
            if problem is not None:
                self._requests.pop(request.key, None)
                self.metrics.refused("mqtt", problem)
                self._send_error(request.reply_to, request.id, request.attempt, problem)
        finally:
            for ack in request.acks:
                ack()
            request.acks.clear()

    def _on_cancel(self, incoming: Incoming) -> None:
        try:
            envelope = messages.read_envelope(
                messages.read_object(incoming.payload) if incoming.payload.strip() else {}
            )
        except RequestError as exc:
            _log.debug("mqtt: ignored a cancellation: %s", exc)
            return
        topic = incoming.response_topic or envelope.reply_to
        request_id = envelope.id or incoming.implied_id
        request = None
        if topic is not None and request_id is not None:
            request = self._requests.get((topic, request_id, incoming.user))
        if request is None:
            # Usually it crossed with the last message, so no reply is needed.
            _log.debug("mqtt: a cancellation matched no open request")
            return
        request.cancel()

    # Answers.

    def _happen(self, request: OpenRequest, step: Callable[[], None]) -> None:
        """Have the service's thread take a step of a request; any thread may call this."""
        self._happened.append((request, step))
        self._connection.wake()

    def _on_event(self, request: OpenRequest, event: Event) -> None:
        if isinstance(event, Finished | Failure):
            request.end = event
        else:
            request.add(event)

    def _guarded(self, request: OpenRequest, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 - one request must not fail the others
            _log.exception("mqtt: a request failed")
            self._requests.pop(request.key, None)
            request.cancel()
            problem = EdgekitError("the answer could not be sent")
            self._send_error(request.reply_to, request.id, request.attempt, problem)

    def _flush(self, request: OpenRequest) -> None:
        """Send pending deltas that are due, while the broker keeps up, and after them the last message."""
        now = time.monotonic()
        while request.pending:
            if request.end is None and (now < request.flush_at or not self._connection.can_send_now):
                break
            limit = self._connection.max_packet_size // 8
            for batch in request.pending.take(min(MAX_DELTA_CHARS, limit) if limit else MAX_DELTA_CHARS):
                message = messages.delta(request.id, request.attempt, request.seq, batch, logprobs=request.logprobs)
                self._publish(request.reply_to, message, partial(self._on_no_subscribers, request))
                request.seq += 1
            request.flush_at = now + self._config.coalesce_ms / 1000
        if request.end is None or (self._requests.get(request.key) is not request):
            return
        del self._requests[request.key]
        if isinstance(request.end, Failure):
            self._send_error(request.reply_to, request.id, request.attempt, request.end.error)
            return
        final = messages.final(
            request.id,
            request.attempt,
            request.seq,
            request.collected,
            request.end,
            model=self._info.name,
            logprobs=request.logprobs,
        )
        payload = messages.encode(final)
        if request.id_given and request.end.reason != "cancelled":
            self._reply_cache.put(request.key, CachedReply(request.attempt, request.digest, payload, now))
        self._connection.send(self._final(request.reply_to, request.id, request.attempt, payload))

    def _final(self, reply_to: ReplyTo, request_id: str, attempt: int, payload: bytes) -> Outgoing:
        too_large = RequestError(
            f"the answer has {len(payload)} bytes, which the broker does not take",
            hint="lower `max_tokens`, or raise the broker's maximum size of packets or messages",
            code="reply_too_large",
        )
        fallback = reply_to.message(messages.encode(messages.error(request_id, attempt, too_large)))
        return reply_to.message(payload, fallback=fallback)

    def _send_error(self, reply_to: ReplyTo, request_id: str | None, attempt: int, problem: EdgekitError) -> None:
        self._publish(reply_to, messages.error(request_id, attempt, problem))

    def _publish(
        self, reply_to: ReplyTo, message: dict[str, Any], on_no_subscribers: Callable[[], None] | None = None
    ) -> None:
        self._connection.send(reply_to.message(messages.encode(message), on_no_subscribers=on_no_subscribers))

    def _on_no_subscribers(self, request: OpenRequest) -> None:
        if request.end is None and self._requests.get(request.key) is request:
            self._no_subscribers += 1
            _log.info("mqtt: cancelled a request: its response topic has no subscribers")
            request.cancel()

    def _refuse(self, request_id: str | None, problem: EdgekitError) -> None:
        """Report a request that cannot be answered, in the log and on the refused topic."""
        self.metrics.refused("mqtt", problem)
        # Rate-limited, because any client that can publish can cause this line.
        self._refusals.warning(f"mqtt: a request cannot be answered: {problem}")
        payload = messages.encode(messages.refused(request_id, problem))
        self._connection.send(Outgoing(self.topics.refused, payload, content_type=messages.CONTENT_TYPE, durable=False))


def _own_folder(path: Path) -> Path:
    """Make the service's folder; if that fails, using its files fails, which is logged there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        _log.warning("mqtt: cannot make the folder %s: %s", path, exc)
    return path
