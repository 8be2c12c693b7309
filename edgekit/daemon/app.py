"""The daemon, wired: one model, one queue, two doors, and the service manager told about it.

Each feature is one object with `start()` and `stop()`. The order matters: the HTTP door opens first, so that
`/healthz` answers while the model loads; requests and the broker come when there is a model to answer them; on the way
out the doors stop taking requests before the model goes.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
from pathlib import Path

from edgekit.bundle.bundle import open_bundle
from edgekit.config import DaemonConfig
from edgekit.daemon.allocator import Trimmer, limit_arenas
from edgekit.daemon.crash_loop import CrashLoop
from edgekit.daemon.health import Watchdog
from edgekit.daemon.http.door import HttpDoor
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.daemon.notify import Notifier
from edgekit.daemon.preparation import Preparation
from edgekit.errors import ConfigError
from edgekit.generation.opening import open_model, schedule, share_memory
from edgekit.generation.scheduler import Scheduler

__all__ = ["Daemon"]

logger = logging.getLogger(__name__)

_DRAIN_S = 20.0
"""How long running answers may take to end when the daemon stops; below the unit's TimeoutStopSec."""

_LOAD_S = 600.0
"""How long loading may take on a slow disk; beyond that the service manager starts over."""


class Daemon:
    """A daemon to be.

    Args:
        config: Its configuration, with a bundle.
        notify: The service manager.

    Raises:
        ConfigError: No bundle is named, or both doors are closed.
    """

    def __init__(self, config: DaemonConfig, notify: Notifier | None = None) -> None:
        if config.bundle is None:
            raise ConfigError("no bundle to serve", hint="edgekit serve DIR, or `bundle: DIR` in edgekit.yaml")
        if not config.http.enabled and config.mqtt.host is None:
            raise ConfigError("both doors are closed", hint="enable `http`, or name a broker in `mqtt.host`")
        self._config = config
        self._bundle: Path = config.bundle
        self._notify = notify or Notifier()
        self._metrics = Metrics()
        self._scheduler: Scheduler | None = None
        self._http: HttpDoor | None = None
        self._mqtt: MqttDoor | None = None
        self._preparation: Preparation | None = None
        # Before there is a queue to beat, loading counts as alive: TimeoutStartSec limits it.
        self._watchdog = Watchdog(self._heartbeat_age, self._notify, failed=self._has_failed)
        self._trimmer = Trimmer()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Open the doors and load the model; returns once requests are answered.

        Raises:
            EdgekitError: The port is busy, or the bundle cannot be run. What was started is stopped again.
        """
        config = self._config
        try:
            if config.http.enabled:
                self._http = HttpDoor(config.http, None, None, self._metrics, self._watchdog)
                self._http.start()
            self._watchdog.start()
            self._trimmer.start()
            self._notify.extend(_LOAD_S, f"loading {self._bundle}")
            bundle = open_bundle(self._bundle)
            model = open_model(bundle, config.generation)
            shares = share_memory(model, bundle, config.generation)
            scheduler = schedule(model, bundle, config.generation, shares)
            self._scheduler = scheduler
            if shares.grammars:
                self._preparation = Preparation(model.grammars.prepare, lambda: scheduler.queue_length() > 0)
            self._metrics.watch(
                model.info,
                queue_length=scheduler.queue_length,
                heartbeat_age=scheduler.seconds_since_heartbeat,
                stats=scheduler.stats,
            )
            if self._http is not None:
                self._http.attach(scheduler, model.info)
            if config.mqtt.host is not None:
                self._mqtt = MqttDoor(config.mqtt, scheduler, model.info, self._metrics)
                self._mqtt.start()
        except BaseException:
            self.stop(drain_s=0.0)
            raise
        logger.info("%s answers, on %s", model.info.name, model.info.runner)
        self._notify.ready(f"{model.info.name} answers, on {model.info.runner}")
        if self._preparation is not None:
            self._preparation.start()

    def stop(self, drain_s: float = _DRAIN_S) -> None:
        """Let running answers end, then close everything; harmless if nothing was started."""
        self._notify.stopping("letting running answers end")
        if self._scheduler is not None:
            # First: it refuses new requests and ends the others, so that the doors have their last events to send.
            self._scheduler.stop(drain_s)
        if self._mqtt is not None:
            self._mqtt.stop()
        if self._http is not None:
            self._http.stop()
        self._watchdog.stop()
        self._trimmer.stop()
        if self._preparation is not None:
            self._preparation.stop()

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. Call it on the main thread.

        Raises:
            EdgekitError: It could not start.
        """
        limit_arenas()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        loop = _crash_loop()
        if loop is not None and not loop.enter():
            return
        self.start()
        try:
            # A wait without a limit would hold back signals on some systems.
            while not self._stopping.wait(1.0):
                pass
            logger.info("stopping: running answers have %.0f s to end", _DRAIN_S)
        finally:
            # A second signal ends the wait for running answers.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            self.stop()
        if loop is not None:
            loop.leave()

    def _heartbeat_age(self) -> float:
        return self._scheduler.seconds_since_heartbeat() if self._scheduler else 0.0

    def _has_failed(self) -> bool:
        return self._scheduler is not None and self._scheduler.failed


def _crash_loop() -> CrashLoop | None:
    """The guard against endless restarts, where launchd started us."""
    if platform.system() != "Darwin" or "XPC_SERVICE_NAME" not in os.environ:
        return None
    state = Path.home() / "Library" / "Application Support" / "edgekit"
    state.mkdir(parents=True, exist_ok=True)
    return CrashLoop(state / "starts")
