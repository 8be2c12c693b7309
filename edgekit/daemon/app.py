"""Wires the daemon: one model, one queue, the HTTP and MQTT transports, and the service manager's notifications.

Each feature is an object with `start()` and `stop()`. The order matters. The HTTP server starts first, so that
`/healthz` answers while the model loads; requests are accepted, and the broker connected, once it is loaded. A TensorRT
engine that is missing is built afterwards, while another runner answers, or first where memory does not hold both: then
the broker is connected first, and requests are refused meanwhile. On shutdown the worker stops first: it rejects new
requests and ends the open ones, and the transports then send the last events.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import DaemonConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.allocator import Trimmer, limit_arenas, trim
from edgekit.daemon.api.validation import build_validators
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.crash_loop import CrashLoop
from edgekit.daemon.device import Board
from edgekit.daemon.engine_start import EngineStart
from edgekit.daemon.health import Watchdog
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.launchd import is_launchd_job
from edgekit.daemon.log_file import LogFile
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.not_ready import NotLoaded, expected_info
from edgekit.daemon.notify import Notifier
from edgekit.daemon.readings import Readings
from edgekit.daemon.retry import LIMIT_S, TRANSIENT, StoppedError, retry
from edgekit.daemon.warmup import Warmup
from edgekit.errors import ConfigError, EdgekitError
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.engine_wanted import this_target
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.model import ModelInfo
from edgekit.generation.startup import plan_memory, start_worker
from edgekit.machine import state_folder
from edgekit.target import Target

if TYPE_CHECKING:
    from edgekit.daemon.engine_switch import EngineSwitch
    from edgekit.daemon.mqtt.intake import Submitter
    from edgekit.daemon.mqtt.service import MqttService

__all__ = ["Daemon"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DRAIN_S = 20.0
"""Time that running requests get to finish when the daemon stops; below the unit's TimeoutStopSec."""

_LOAD_S = 600.0
"""Time that loading may take on a slow disk; after that the service manager restarts the daemon."""

_BUILD_S = 300.0
"""Time to the next sign of life of an engine's build before the model is loaded; they come every few seconds."""

_POLL_S = 0.1
_UNWIND_S = 1.0
"""Time that a start which can be interrupted gets to end by itself."""

_CANCEL_S = 5.0
"""The same while an engine is built: its processes are ended, and what they have written is removed."""

_REPORT_S = 5.0
"""Interval of reports while the bundle is verified."""


class Daemon:
    """The daemon.

    Args:
        config: Its configuration; names a bundle.
        notify: Notifies the service manager.
        find_target: Returns what target this machine is: an engine is built for its GPU.

    Raises:
        ConfigError: No bundle is named, or neither HTTP nor MQTT is enabled.
    """

    def __init__(
        self,
        config: DaemonConfig,
        notify: Notifier | None = None,
        *,
        find_target: Callable[[], Target] = this_target,
    ) -> None:
        if config.bundle is None:
            raise ConfigError("no bundle to serve", hint="edgekit serve DIR, or `bundle: DIR` in edgekit.yaml")
        if not config.http.enabled and config.mqtt.host is None:
            raise ConfigError("neither HTTP nor MQTT is enabled", hint="enable `http`, or set `mqtt.host`")
        self._config = config
        self._bundle: Path = config.bundle
        self._notify = notify or Notifier()
        self._find_target = find_target
        self._metrics = Metrics()
        self._switch: EngineSwitch | None = None
        self._access = Access(config.access, self._metrics)
        self._worker: EngineWorker | None = None
        self._http: HttpServer | None = None
        self._mqtt: MqttService | None = None
        self._warmup: Warmup | None = None
        # While the model loads there is no heartbeat yet: that counts as healthy, TimeoutStartSec limits it.
        self._watchdog = Watchdog(self._heartbeat_age, self._notify, failed=self._has_failed)
        self._trimmer = Trimmer()
        self._board = Board(self._metrics)
        # None until the daemon answers.
        self._info: ModelInfo | None = None
        self._log_file = LogFile() if is_launchd_job() else None
        self._stopping = threading.Event()
        self._reload = threading.Event()
        self._next_report = 0.0
        self._engine = EngineStart(config.generation, self._on_build, self._stopping, self._on_verified)
        # Without a service manager, an error is for the user in front of the terminal.
        self._retry_s = LIMIT_S if self._notify.listening or is_launchd_job() else 0.0

    def start(self) -> None:
        """Start the transports and load the model; returns once requests are accepted.

        Raises:
            EdgekitError: The port is busy, or the bundle cannot be run. Everything started is stopped again. Under a
                service manager, transient errors are retried (see `retry`).
            StoppedError: A signal stopped the daemon while it waited.
        """
        try:
            self._access.start()
            self._start_http()
            self._watchdog.start()
            self._trimmer.start()
            if self._log_file is not None:
                self._log_file.start()
            bundle, draft = self._open_bundles()
            self._engine.plan(bundle, draft, self._find_target)
            self._board.start()
            build = self._engine.build
            if build is not None:
                self._metrics.watch_build(lambda: self._engine.state)
                self._watchdog.watch("the build of the engine", build.seconds_stalled)
                if not self._engine.builds_beside:
                    # For minutes, in which the device must not look as if it were offline. While a model is just
                    # loaded, requests wait at the broker.
                    self._start_mqtt(NotLoaded(self._activity), expected_info(bundle, self._config))
                    self._engine.build_before_loading()
                    self._refresh_mqtt()
            worker, info = self._load(bundle, draft)
            # First: with HTTP attached, `/readyz` says that the daemon is ready.
            if self._mqtt is None:
                self._start_mqtt(worker, info)
            else:
                self._mqtt.attach(worker, info)
            if self._http is not None:
                self._http.attach(worker, info)
        except BaseException:
            self.stop(drain_s=0.0)
            raise
        logger.info("serving %s on %s", info.name, info.runner)
        self._info = info
        self._notify.ready(self._serving())
        if self._warmup is not None:
            self._warmup.start()
        if build is not None and self._engine.builds_beside:
            from edgekit.daemon.engine_switch import EngineSwitch

            self._switch = EngineSwitch(
                build, worker, bundle, self._config.generation, self._on_switched, info=info, draft=draft
            )
            self._switch.start()

    def _start_http(self) -> None:
        config = self._config.http
        if not config.enabled:
            return
        self._http = http = HttpServer(
            config, None, None, self._metrics, self._watchdog, activity=self._activity, access=self._access
        )
        self._retry(http.start)
        self._watchdog.watch("the HTTP server", http.seconds_since_heartbeat)

    def _open_bundles(self) -> tuple[Bundle, Bundle | None]:
        """The bundle, and the draft model's."""
        bundle = self._retry(lambda: open_bundle(self._bundle))
        path = self._config.generation.draft_bundle
        return bundle, None if path is None else self._retry(lambda: open_bundle(path))

    def _load(self, bundle: Bundle, draft: Bundle | None) -> tuple[EngineWorker, ModelInfo]:
        """Load the model and start its worker."""
        config = self._config.generation
        logger.info("loading %s", self._bundle)
        self._notify.extend(_LOAD_S, self._activity() or f"loading {self._bundle}")
        model = self._engine.open_model(bundle, draft)
        plan = plan_memory(model, bundle, config, reserved_bytes=self._engine.reserved_bytes)
        self._worker = worker = start_worker(model, bundle, config, plan, meter=self._board.meter)
        self._watchdog.watch("the preparation of a request", worker.seconds_preparing)
        prepare = partial(_prepare, model.grammars if plan.grammars else None)
        self._warmup = Warmup(prepare, lambda: worker.queue_length() > 0)
        self._metrics.watch(
            model.info,
            queue_length=worker.queue_length,
            heartbeat_age=worker.seconds_since_heartbeat,
            stats=worker.stats,
        )
        return worker, replace(model.info, aliases=self._config.aliases)

    def _start_mqtt(self, worker: Submitter, info: ModelInfo) -> None:
        config = self._config.mqtt
        if config.host is None:
            return
        from edgekit.daemon.mqtt.service import MqttService

        self._mqtt = mqtt = MqttService(
            config,
            worker,
            info,
            self._metrics,
            state_folder(),
            device=self._board.status,
            engine=lambda: self._engine.state,
            access=self._access,
            parallel=self._config.generation.parallel,
            readings=Readings(
                self._metrics.totals, lambda: self._worker, jetson=self._board.jetson, meter=self._board.meter
            ),
        )
        mqtt.start()
        self._watchdog.watch("the MQTT service", mqtt.seconds_since_heartbeat)
        self._watchdog.watch("the preparation of an MQTT request", mqtt.seconds_preparing)

    def stop(self, drain_s: float = _DRAIN_S) -> None:
        """Let running requests finish, then stop everything that was started."""
        self._notify.stopping("waiting for running requests to finish")
        self._engine.cancel()
        if self._worker is not None:
            # First: it rejects new requests and ends the open ones, whose last events the transports then send.
            self._worker.stop(drain_s)
        if self._switch is not None:
            self._switch.stop()
        if self._mqtt is not None:
            self._mqtt.stop()
        if self._http is not None:
            self._http.stop()
        self._access.stop()
        self._watchdog.stop()
        self._trimmer.stop()
        self._board.stop()
        if self._log_file is not None:
            self._log_file.stop()
        if self._warmup is not None:
            self._warmup.stop()

    def reload(self) -> None:
        """Read the certificate and the API keys again, and open the audit log anew; open requests are not affected."""
        logger.info("reading the certificate and the API keys again")
        if self._http is not None:
            self._http.reload()
        self._access.reload()

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. Call it on the main thread.

        A signal while the model loads ends the process at once: nothing has been accepted that could be lost.

        Raises:
            EdgekitError: The daemon could not start.
        """
        limit_arenas()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        signal.signal(signal.SIGHUP, lambda *_: self._reload.set())
        loop = _crash_loop()
        if loop is not None and not loop.enter():
            return
        try:
            started = self._start_until_stopped()
        except EdgekitError as error:
            if loop is not None and error.code in TRANSIENT:
                loop.leave()  # no crash: it is right to be restarted as often as it takes
            raise
        if started:
            self._serve_until_stopped()
        if loop is not None:
            loop.leave()
        if started is None:
            self._notify.stopping("stopped while loading")
            logger.info("stopped while loading")
            _exit_at_once()

    def _start_until_stopped(self) -> bool | None:
        """Start on another thread, since a library may load for minutes and signals are handled on this one.

        Returns:
            True if the daemon serves, False if it was stopped before, None if the other thread is still loading.
        """
        outcome: Future[None] = Future()

        def start() -> None:
            try:
                self.start()
            except BaseException as error:  # noqa: BLE001  raised on the main thread
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        threading.Thread(target=start, name="start", daemon=True).start()
        while not self._stopping.is_set():
            if wait([outcome], timeout=_POLL_S).done:
                outcome.result()
                return True
        if not wait([outcome], timeout=_UNWIND_S if self._engine.state is None else _CANCEL_S).done:
            return None
        error = outcome.exception()
        if error is not None and not isinstance(error, StoppedError):
            logger.info("the start failed while the daemon was stopped: %s", error)
        return error is None

    def _serve_until_stopped(self) -> None:
        try:
            # A wait without timeout delays signals on some systems.
            while not self._stopping.wait(1.0):
                if self._reload.is_set():
                    self._reload.clear()
                    self.reload()
            logger.info("stopping: running requests have %.0f s to finish", _DRAIN_S)
        finally:
            # A second signal ends the wait for running requests.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            self.stop()

    def _activity(self) -> str:
        # A build beside the model begins once that is loaded.
        waits = self._worker is None and self._engine.builds_beside
        return "" if self._engine.state is None or waits else str(self._engine.state)

    def _serving(self) -> str:
        info = self._info
        over_mqtt = f", over MQTT as {self._mqtt.topics.device}" if self._mqtt is not None else ""
        activity = self._activity()
        return f"serving {info.name} on {info.runner}{over_mqtt}{'; ' if activity else ''}{activity}" if info else ""

    def _on_build(self, state: BuildState) -> None:
        """Show how far the engine is; until the daemon answers, that is also a reason to start for longer."""
        if self._info is None:
            self._notify.extend(_BUILD_S, str(state))
        else:
            self._notify.status(self._serving())
        self._refresh_mqtt()

    def _refresh_mqtt(self) -> None:
        if self._mqtt is not None:
            self._mqtt.refresh()

    def _on_switched(self, info: ModelInfo) -> None:
        """Show another description of the model everywhere."""
        info = replace(info, aliases=self._config.aliases)
        self._info = info
        self._metrics.describe(info)
        if self._http is not None and self._worker is not None:
            self._http.attach(self._worker, info)
        if self._mqtt is not None:
            self._mqtt.describe(info)
        self._notify.status(self._serving())

    def _retry(self, attempt: Callable[[], T]) -> T:
        return retry(attempt, self._stopping, self._notify, limit_s=self._retry_s)

    def _on_verified(self, done: int, total: int) -> None:
        """Report progress, and that a slow disk is no reason to restart."""
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT_S
            self._notify.extend(_LOAD_S, f"verifying {self._bundle}: {100 * done // max(1, total)} %")

    def _heartbeat_age(self) -> float:
        return self._worker.seconds_since_heartbeat() if self._worker else 0.0

    def _has_failed(self) -> bool:
        return self._worker is not None and self._worker.failed


def _prepare(grammars: GrammarCompiler | None) -> None:
    """Do what the start leaves out, and the first requests would wait for; then return the memory that it took.

    Args:
        grammars: None if there is no memory to build them in advance.
    """
    trim()  # of what was parsed while the model was loaded: 20 MiB of a tokenizer of 50,000 tokens
    build_validators()
    if grammars is not None:
        grammars.prepare()
        trim()


def _crash_loop() -> CrashLoop | None:
    """Return the guard against endless restarts, if launchd started the daemon."""
    if not is_launchd_job():
        return None
    state = state_folder()
    if state is None:
        return None
    return CrashLoop(state / "starts")


def _exit_at_once() -> None:
    """End the process with status 0, without waiting for its threads: one is inside a library's loading function."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
