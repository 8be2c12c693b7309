"""The MQTT service: submits requests from the broker to the engine worker and publishes its events as messages.

One thread does everything but the preparation of requests, which has its own; that one and the engine worker's only
enqueue what happened.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from edgekit.config import MqttConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.boot_clock import BootClock
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.job_store import JobStore, StoreError
from edgekit.daemon.job_types import JobKey, StoreLimits
from edgekit.daemon.metrics import Metrics, MqttStats
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.connection import Connection
from edgekit.daemon.mqtt.home_assistant import HomeAssistant
from edgekit.daemon.mqtt.incoming import Incoming
from edgekit.daemon.mqtt.intake import NOT_NOW, Intake, Submitter
from edgekit.daemon.mqtt.jobs import Arrival, Cancellation, Jobs
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.presence import Presence
from edgekit.daemon.mqtt.requests import OpenRequest, ReplyTo
from edgekit.daemon.mqtt.senders import Senders
from edgekit.daemon.mqtt.state_topic import StateTopic
from edgekit.daemon.mqtt.topics import Topics, check_reply_topic, reply_roots
from edgekit.daemon.rare_log import RareLog
from edgekit.daemon.readings import Readings
from edgekit.daemon.state import make_folder
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
        state: Folder of what survives a restart, made if it is missing; None keeps nothing.
        device: Returns the board and its sensors, for the status; None leaves them out.
        engine: Returns how far the engine is that the daemon builds, for the status.
        access: The limits of users, and the audit log; None has none.
        parallel: How many answers the worker generates at the same time; not many more are given to it.
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
        parallel: int = 8,
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
        self._no_subscribers = 0
        self.metrics.watch_mqtt(self.stats)
        self._refusals = RareLog(_log)
        self._store_path = folder / "requests.sqlite" if folder is not None and config.durable else None
        clock = BootClock()
        self._jobs = Jobs(
            self._connection,
            self._senders,
            self.metrics,
            clock,
            check=self._check,
            report=self._refuse,
            start=self._answer,
            model=lambda: self._info.name,
            parallel=parallel,
        )
        self._intake = Intake(worker, info, self.metrics, clock, happen=self._happen, access=access)
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
            repeated=self._jobs.repeated,
            no_subscribers=self._no_subscribers,
            unanswered=self._jobs.unanswered,
            unsent=self._jobs.unsent,
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
            while not (self._open_store() or self._stopping.wait(IDLE_WAIT_S)):
                self._heartbeat = time.monotonic()
            while not self._stopping.is_set():
                self._run_once(self._next_wait_s())
            self._finish()
        except Exception:  # noqa: BLE001 - the thread's outermost handler
            # No known error ends here. Dropping the connection makes the broker publish the Will Message.
            _log.exception("mqtt: the service stopped after an error")
            self._connection.drop()
        finally:
            self._connection.close()
            self._jobs.close()

    def _open_store(self) -> bool:
        """Open the store; while the disk is full, the broker keeps the requests."""
        config = self._config
        path = _usable(self._store_path)
        limits = StoreLimits(
            jobs=config.inbox_requests,
            job_bytes=config.inbox_mib << 20,
            answers=config.record_replies,
            answer_bytes=config.record_mib << 20,
            answer_s=config.record_hours * 3600.0,
        )
        try:
            self._jobs.use(JobStore(path, limits))
        except StoreError as error:
            self._refusals.warning(f"mqtt: not connected yet: {error}")
            return False
        return True

    def _run_once(self, wait_s: float, *, begin: bool = True) -> None:
        self._connection.step(wait_s)
        self._heartbeat = time.monotonic()
        while self._publications:
            self._publications.popleft()()
        while self._happened:
            self._guarded(*self._happened.popleft())
        for request in [*self._jobs.open.values()]:
            self._guarded(request, partial(self._flush, request))
        self._jobs.exchange(begin=begin)
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
            due += [request.flush_at for request in self._jobs.open.values() if request.pending]
        if self._presence.publish_due is not None:
            due.append(self._presence.publish_due)
        if self._connection.ready and self._home_assistant is not None and self._home_assistant.due is not None:
            due.append(self._home_assistant.due)
        return max(0.0, min([IDLE_WAIT_S, self._jobs.next_wait_s(), *(at - now for at in due)]))

    def _finish(self) -> None:
        jobs = self._jobs
        self._run_once(0.0, begin=False)
        if jobs.persistent:
            # They are answered after the next start.
            for request in [*jobs.open.values()]:
                if request.end is None:
                    request.cancel()
                    jobs.put_back(request)
        else:
            for request in jobs.open.values():
                request.cancel()
            deadline = time.monotonic() + STOP_GRACE_S
            while jobs.open and time.monotonic() < deadline:
                self._run_once(0.05, begin=False)
        self._intake.stop()
        for request in [*jobs.open.values()]:
            request.cancel()
            if request.end is None:
                request.end = Failure(shutting_down())
            self._flush(request)
        if not jobs.persistent:
            jobs.refuse_all(shutting_down())
        jobs.exchange(begin=False)
        if self._connection.ready:
            self._connection.send(self._presence.offline())
        deadline = time.monotonic() + FLUSH_GRACE_S
        while self._connection.ready and time.monotonic() < deadline:
            self._connection.step(0.05)
            jobs.exchange(begin=False)
            if self._connection.idle and not jobs.unsent:
                break

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
            incoming = Incoming.of(message, user)
            if message.topic.startswith(self.topics.request):
                self._on_request(incoming, ack)
            else:
                self._on_cancel(incoming, ack)
            return
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
                self._jobs.arrived(Arrival(incoming, messages.read_envelope(body), reply_to, ack))
            except RequestError as exc:
                problem = exc
        if problem is not None:
            self._jobs.reject(reply_to, request_id or incoming.implied_id, incoming.user, problem, ack)

    def _read(self, payload: bytes) -> dict[str, Any]:
        if len(payload) > self._config.max_payload_bytes:
            raise RequestError(
                f"the payload has {len(payload)} bytes; at most {self._config.max_payload_bytes} are allowed",
                hint="shorten the messages",
                code="body_too_large",
            )
        return messages.read_object(payload)

    def _on_cancel(self, incoming: Incoming, ack: Callable[[], None]) -> None:
        try:
            envelope = messages.read_envelope(
                messages.read_object(incoming.payload) if incoming.payload.strip() else {}
            )
        except RequestError as exc:
            _log.debug("mqtt: ignored a cancellation: %s", exc)
            ack()
            return
        topic = incoming.response_topic or envelope.reply_to
        request_id = envelope.id or incoming.implied_id
        if topic is None or request_id is None:
            ack()
            return
        self._jobs.arrived(Cancellation(JobKey(topic, incoming.user or "", request_id), ack))

    def _check(self, key: JobKey) -> None:
        """Check the reply topic of a stored request: the configuration may have changed since it was accepted."""
        allowed = reply_roots(key.sender or None, self._config.reply_prefixes)
        check_reply_topic(key.reply_to, prefix=self._config.prefix, allowed=allowed)

    def _answer(self, request: OpenRequest) -> None:
        self._intake.add(request, on_prepared=self._on_prepared, on_event=self._on_event)

    def _on_prepared(self, request: OpenRequest, problem: EdgekitError | None) -> None:
        if problem is None:
            self._jobs.taken()
            return
        stopped = self._stopping.is_set() or problem.code == "shutting_down"
        if problem.code in NOT_NOW and (self._jobs.persistent or not stopped):
            self._jobs.put_back(request)
            return
        self.metrics.refused("mqtt", problem)
        self._end_with_error(request, problem)

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
            request.cancel()
            self._end_with_error(request, EdgekitError("the answer could not be sent"))

    def _flush(self, request: OpenRequest) -> None:
        """Send pending deltas that are due, while the broker keeps up, and after them store the last message."""
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
        if request.end is None:
            return
        if isinstance(request.end, Failure):
            error = request.end.error
            if self._jobs.persistent and error.code in NOT_NOW:
                self._jobs.put_back(request)
            else:
                self._end_with_error(request, error)
            return
        final = messages.final(
            request.id,
            request.attempt,
            request.seq,
            request.collected,
            request.end,
            model=self._info.name,
            logprobs=request.logprobs,
            ignored=request.ignored,
        )
        self._jobs.end(request, messages.encode(final), keep=request.end.reason != "cancelled")

    def _end_with_error(self, request: OpenRequest, problem: EdgekitError) -> None:
        error = messages.error(request.id, request.attempt, problem)
        self._jobs.end(request, messages.encode(error), keep=False)

    def _publish(
        self, reply_to: ReplyTo, message: dict[str, Any], on_no_subscribers: Callable[[], None] | None = None
    ) -> None:
        self._connection.send(reply_to.message(messages.encode(message), on_no_subscribers=on_no_subscribers))

    def _on_no_subscribers(self, request: OpenRequest) -> None:
        if request.end is None and self._jobs.open.get(request.job.n) is request:
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


def _usable(path: Path | None) -> Path | None:
    """Return a file if its folder can be written to, and make that; None, with a line in the log, if it cannot."""
    if path is None:
        return None
    try:
        make_folder(path.parent)
        writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            return path
        writable = False
    if writable:
        return path
    _log.warning("mqtt: requests are lost if the daemon ends: %s cannot be written to", path.parent)
    return None


def _own_folder(path: Path) -> Path:
    """Make the service's folder; if that fails, using its files fails, which is logged there."""
    try:
        make_folder(path)
    except OSError as exc:
        _log.warning("mqtt: cannot make the folder %s: %s", path, exc)
    return path
