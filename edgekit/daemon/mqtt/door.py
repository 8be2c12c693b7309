"""The MQTT door: requests from the broker to the scheduler, events of the scheduler back as messages.

One thread does everything; the scheduler's thread only hands its events over. The door knows nothing about models:
`info` is what it tells others, and `ChatRequest` is what it passes on.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import paho.mqtt.client as paho

from edgekit.config import MqttConfig
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.counters import Counters
from edgekit.daemon.mqtt.incoming import Incoming
from edgekit.daemon.mqtt.jobs import Cancels, Finished, Job, JobKey, Record, Reply
from edgekit.daemon.mqtt.link import Link
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.presence import Presence
from edgekit.daemon.mqtt.topics import Topics, check_reply_topic, default_device_id
from edgekit.daemon.wire import Gathered, parse_chat, parse_completion, printable
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import ChatRequest, Event, Failure, Finish
from edgekit.generation.scheduler import OnEvent

__all__ = ["MqttDoor", "Submits"]

_log = logging.getLogger(__name__)

IDLE_STEP_S = 1.0
STOP_GRACE_S = 3.0
LAST_WORDS_S = 2.0
MAX_DELTA_CHARS = 4096
_REFUSAL_LOG_S = 10.0


class Submits(Protocol):
    """All of `Scheduler` that the door uses."""

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Cancels:
        """Queue a request; see `Scheduler.submit`."""


class MqttDoor:
    """Serves chats over MQTT until `stop`.

    Args:
        config: `host` must be set.
        scheduler: Where requests go.
        info: What the retained card and `model` fields say.
        metrics: Where requests are counted; None counts in `counters` alone.

    Raises:
        ConfigError: The prefix or the device id cannot stand in a topic.
    """

    def __init__(self, config: MqttConfig, scheduler: Submits, info: ModelInfo, metrics: Metrics | None = None) -> None:
        self.topics = Topics(config.prefix, config.device_id or default_device_id())
        self.counters = Counters()
        self._config = config
        self._scheduler = scheduler
        self._info = info
        self._metrics = metrics
        self._link = Link(
            config,
            client_id=self.topics.client_id,
            subscriptions=(self.topics.request, self.topics.cancel, self.topics.status),
            listener=self,
        )
        self._presence = Presence(self.topics, info)
        self._next_refusal_log = 0.0
        self._jobs: dict[JobKey, Job] = {}
        self._record = Record()
        self._events: deque[tuple[Job, Event]] = deque()
        self._stopping = threading.Event()
        self._beat = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether requests can reach the door now."""
        return self._link.ready

    @property
    def connections(self) -> int:
        """Connections made so far."""
        return self._link.connections

    @property
    def dropped(self) -> int:
        """Messages given up: too many waited, or the broker would not take them."""
        return self._link.dropped

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the door's thread last went round; a connection attempt may take several."""
        return time.monotonic() - self._beat

    def start(self) -> None:
        """Begin to connect, and keep at it; a broker that is away is no error here."""
        self._thread = threading.Thread(target=self._run, name="edgekit-mqtt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is under way, send the last messages, say `offline`, disconnect. Harmless when repeated."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            self._link.close()
        else:
            self._link.wake()
            thread.join()

    # The door's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn(self._next_wait_s())
            self._finish()
        except Exception:  # noqa: BLE001 - the thread's last line
            # Nothing is known to end here; if something does, the will says offline and the log says why.
            _log.exception("mqtt: the door closed after an error")
            self._link.abandon()
        finally:
            self._link.close()

    def _turn(self, wait_s: float) -> None:
        self._link.step(wait_s)
        self._beat = time.monotonic()
        while self._events:
            job, event = self._events.popleft()
            self._or_fail(job, partial(self._on_event, job, event))
        for job in [*self._jobs.values()]:
            self._or_fail(job, partial(self._flush, job))
        due = self._presence.repair_due
        if due is not None and time.monotonic() >= due:
            self._link.send(self._presence.online())

    def _next_wait_s(self) -> float:
        now = time.monotonic()
        due = [job.flush_at for job in self._jobs.values() if job.pending] if self._link.relaxed else []
        if self._presence.repair_due is not None:
            due.append(self._presence.repair_due)
        return max(0.0, min([IDLE_STEP_S, *(at - now for at in due)]))

    def _finish(self) -> None:
        for job in self._jobs.values():
            job.cancel()
        deadline = time.monotonic() + STOP_GRACE_S
        while self._jobs and time.monotonic() < deadline:
            self._turn(0.05)
        for job in [*self._jobs.values()]:
            self._on_event(job, Failure(RequestError("the daemon is stopping", code="shutting_down")))
            self._flush(job)
        if self._link.ready:
            self._link.send(self._presence.offline())
        deadline = time.monotonic() + LAST_WORDS_S
        while self._link.ready and not self._link.settled and time.monotonic() < deadline:
            self._link.step(0.05)

    # What the link tells.

    def will(self) -> Outgoing:
        """The `offline` of the connection about to be made."""
        self._presence.begin()
        return self._presence.offline()

    def on_ready(self) -> None:
        """Publish card and presence: requests are now heard."""
        self._link.send(self._presence.card(self._config.max_payload_bytes))
        self._link.send(self._presence.online())

    def on_message(self, message: paho.MQTTMessage) -> None:
        """Take a request, a cancellation, or what somebody says about our presence."""
        if message.topic == self.topics.status:
            if not self._stopping.is_set():
                self._presence.heard(bytes(message.payload))
        elif message.retain:
            _log.debug("mqtt: ignored a retained message on %s", message.topic)
        elif message.topic == self.topics.cancel:
            self._on_cancel(Incoming.of(message))
        elif message.topic == self.topics.request:
            self._on_request(Incoming.of(message))

    # Requests.

    def _on_request(self, came: Incoming) -> None:
        self.counters.requests += 1
        name: str | None = None
        problem: EdgekitError | None = None
        body: dict[str, Any] = {}
        try:
            body = self._read(came.payload)
        except RequestError as exc:
            problem = exc
        if isinstance(body.get("id"), str):
            name = messages.clean_id(body["id"])
        try:
            topic = check_reply_topic(
                body.get("reply_to") if came.response_topic is None else came.response_topic,
                prefix=self._config.prefix,
                allowed=self._config.reply_prefixes,
            )
        except RequestError as exc:
            self._refuse(name, exc if problem is None or came.response_topic is not None else problem)
            return
        reply = Reply(topic, came.correlation)
        if problem is None:
            try:
                self._accept(messages.read_envelope(body), reply, came)
            except EdgekitError as exc:
                problem = exc
            except Exception:  # noqa: BLE001 - the caller waits: it gets an answer, whatever broke
                _log.exception("mqtt: a request failed inside the door")
                problem = EdgekitError("the request failed inside the daemon", hint="its log says why")
        if problem is not None:
            if self._metrics is not None:
                self._metrics.refused("mqtt", problem)
            self._fail(reply, name or came.implied_id, problem)

    def _read(self, payload: bytes) -> dict[str, Any]:
        if len(payload) > self._config.max_payload_bytes:
            raise RequestError(
                f"the payload has {len(payload)} bytes; {self._config.max_payload_bytes} are allowed",
                hint="shorten the messages",
                code="body_too_large",
            )
        return messages.read_object(payload)

    def _accept(self, envelope: messages.Envelope, reply: Reply, came: Incoming) -> None:
        chosen = envelope.id or came.implied_id
        request_id = chosen or f"chat-{uuid.uuid4().hex}"
        key, digest = (reply.topic, request_id), envelope.digest()
        running = self._jobs.get(key)
        if running is not None:
            if running.digest != digest:
                raise RequestError(
                    "another request of this id is under way",
                    hint="give every request its own id, a UUID for instance",
                    code="id_in_use",
                    param="id",
                )
            self.counters.repeated += 1
            running.reply = reply
            return
        known = self._record.get(key, digest, time.monotonic())
        if known is not None:
            self.counters.repeated += 1
            self._answer(reply, request_id, known.payload)
            return
        request = self._parse(envelope, request_id, reply.topic, came.expiry_s)
        if self._stopping.is_set():
            raise RequestError("the daemon is stopping", code="shutting_down", retry_after_s=5.0)
        job = Job(
            key,
            request_id,
            named=chosen is not None,
            reply=reply,
            stream=envelope.stream,
            digest=digest,
            written=Gathered(request.n),
            logprobs=request.logprobs is not None,
        )
        # Events may come before `submit` returns; they wait in the queue until this thread is free.
        on_event: OnEvent = partial(self._hand_over, job)
        if self._metrics is not None:
            on_event = self._metrics.track("mqtt", on_event)
        job.ticket = self._scheduler.submit(request, on_event)
        self._jobs[key] = job

    def _parse(self, envelope: messages.Envelope, request_id: str, client: str, expiry_s: float | None) -> ChatRequest:
        limits = [limit for limit in (envelope.deadline_s, expiry_s) if limit is not None]
        body = {**envelope.body, "deadline_s": min(limits)} if limits else envelope.body
        # A text to continue in place of a chat.
        parse = parse_completion if "prompt" in body and "messages" not in body else parse_chat
        request, options = parse(body, request_id=request_id, client=client)
        if options.model is not None and options.model != self._info.name:
            raise RequestError(
                f"this device does not serve `{printable(options.model)}`",
                hint=f"it serves `{self._info.name}`; `model` may be left out",
                code="model_not_found",
                param="model",
            )
        return request

    def _on_cancel(self, came: Incoming) -> None:
        try:
            envelope = messages.read_envelope(messages.read_object(came.payload) if came.payload.strip() else {})
        except RequestError as exc:
            _log.info("mqtt: ignored a cancellation: %s", exc)
            return
        topic = came.response_topic or envelope.reply_to
        name = envelope.id or came.implied_id
        job = self._jobs.get((topic, name)) if topic is not None and name is not None else None
        if job is None:
            # Most often it crossed with the last message; nothing needs to be said.
            _log.debug("mqtt: a cancellation met no request under way")
            return
        self.counters.cancelled += 1
        job.cancel()

    # Answers.

    def _hand_over(self, job: Job, event: Event) -> None:
        """Take an event on the scheduler's thread."""
        self._events.append((job, event))
        self._link.wake()

    def _on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Finish | Failure):
            job.end = event
        else:
            job.add(event)

    def _or_fail(self, job: Job, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 - one request must not take the others along
            _log.exception("mqtt: a request failed inside the door")
            self._jobs.pop(job.key, None)
            job.cancel()
            self._fail(job.reply, job.id, EdgekitError("the answer could not be sent"))

    def _flush(self, job: Job) -> None:
        """Send what is due of one job: pending pieces while the broker keeps up, then the last message."""
        now = time.monotonic()
        while job.pending and (job.end is not None or (now >= job.flush_at and self._link.relaxed)):
            limit = self._link.max_packet // 8
            for batch in job.pending.take(min(MAX_DELTA_CHARS, limit) if limit else MAX_DELTA_CHARS):
                message = messages.delta(job.id, job.seq, batch, logprobs=job.logprobs)
                self._publish(job.reply, message, unheard=job)
                job.seq += 1
            job.flush_at = now + self._config.coalesce_ms / 1000
        if job.end is None or (self._jobs.get(job.key) is not job):
            return
        del self._jobs[job.key]
        if isinstance(job.end, Failure):
            self._fail(job.reply, job.id, job.end.error)
            return
        final = messages.final(job.id, job.seq, job.written, job.end, self._info.name, logprobs=job.logprobs)
        payload = messages.encode(final)
        if job.named and job.end.reason != "cancelled":
            self._record.put(job.key, Finished(job.digest, payload, now))
        self._answer(job.reply, job.id, payload)

    def _answer(self, reply: Reply, request_id: str, payload: bytes) -> None:
        self.counters.answered += 1
        too_large = RequestError(
            f"the answer of {len(payload)} bytes exceeds what the broker carries",
            hint="ask for fewer tokens, or raise the broker's maximum packet size",
            code="reply_too_large",
        )
        instead = messages.encode(messages.error(request_id, too_large))
        fallback = Outgoing(reply.topic, instead, reply.correlation, messages.CONTENT_TYPE)
        self._link.send(Outgoing(reply.topic, payload, reply.correlation, messages.CONTENT_TYPE, fallback=fallback))

    def _fail(self, reply: Reply, request_id: str | None, problem: EdgekitError) -> None:
        self.counters.errors += 1
        self._publish(reply, messages.error(request_id, problem))

    def _publish(self, reply: Reply, message: dict[str, Any], *, unheard: Job | None = None) -> None:
        callback = partial(self._on_unheard, unheard) if unheard is not None else None
        self._link.send(
            Outgoing(
                reply.topic, messages.encode(message), reply.correlation, messages.CONTENT_TYPE, on_unheard=callback
            )
        )

    def _on_unheard(self, job: Job) -> None:
        if job.end is None and self._jobs.get(job.key) is job:
            self.counters.unheard += 1
            _log.info("mqtt: cancelled a request: nobody is subscribed to its response topic")
            job.cancel()

    def _refuse(self, request_id: str | None, problem: EdgekitError) -> None:
        """Note a request that cannot be answered, in the log and where its sender may look for it."""
        self.counters.refused += 1
        if self._metrics is not None:
            self._metrics.refused("mqtt", problem)
        now = time.monotonic()
        # Anybody who may publish can bring this about: the log is not theirs to fill.
        if now >= self._next_refusal_log:
            self._next_refusal_log = now + _REFUSAL_LOG_S
            _log.warning("mqtt: a request cannot be answered: %s (%d so far)", problem, self.counters.refused)
        note = messages.encode(messages.refused(request_id, problem))
        self._link.send(Outgoing(self.topics.refused, note, content_type=messages.CONTENT_TYPE, lasting=False))
