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
from edgekit.config import DaemonConfig, GenerationConfig
from edgekit.daemon.crash_loop import CrashLoop
from edgekit.daemon.health import Watchdog
from edgekit.daemon.http.door import HttpDoor
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.daemon.notify import Notifier
from edgekit.errors import ConfigError
from edgekit.generation.memory_budget import kv_budget, model_shapes
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.prefix import DiskStore, PrefixCache, model_fingerprint
from edgekit.generation.scheduler import Scheduler

__all__ = ["Daemon"]

logger = logging.getLogger(__name__)

MIB = 1 << 20

# What the memory plan calls the runners of artifacts.
_RUNTIMES = {"onnx": "onnxruntime"}

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
        # Before there is a queue to beat, loading counts as alive: TimeoutStartSec limits it.
        self._watchdog = Watchdog(self._heartbeat_age, self._notify)
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
            self._notify.extend(_LOAD_S, f"loading {self._bundle}")
            scheduler = self._schedule(config.generation)
            self._scheduler = scheduler
            model = scheduler.model
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
        logger.info("%s answers", model.info.name)
        self._notify.ready(f"{model.info.name} answers")

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

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. Call it on the main thread.

        Raises:
            EdgekitError: It could not start.
        """
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

    def _schedule(self, config: GenerationConfig) -> Scheduler:
        """Load the model, and put a queue in front of it that stays within this machine's memory."""
        model = load_model(
            self._bundle,
            context_length=config.context_length,
            threads=config.threads,
            parallel=config.parallel,
            kv_bits=config.kv_cache_bits,
        )
        limits = model.runner.limits
        budget = kv_budget(limits, _RUNTIMES.get(model.info.format, model.info.format), model_shapes(self._bundle))
        if config.kv_cache_mib is not None:
            budget = min(budget, config.kv_cache_mib * MIB)
        if budget < limits.context_length * limits.kv_bytes_per_token:
            logger.warning(
                "there is memory for %d tokens of KV cache; a conversation may have %d",
                budget // limits.kv_bytes_per_token,
                limits.context_length,
            )
        return Scheduler(
            model,
            max_queue=config.max_queue,
            kv_budget_bytes=budget,
            prefix=self._prefix_cache(model, config),
            speculation=config.speculation,
        )

    def _prefix_cache(self, model: TextModel, config: GenerationConfig) -> PrefixCache | None:
        """Where beginnings of prompts are kept; None if the configuration wants none."""
        if not config.prefix_memory_mib and config.prefix_folder is None:
            return None
        fingerprint = model_fingerprint(open_bundle(self._bundle).manifest, model.runner)
        store = None
        if config.prefix_folder is not None:
            store = DiskStore(config.prefix_folder, max_bytes=config.prefix_disk_mib * MIB, fingerprint=fingerprint)
        return PrefixCache(
            store,
            memory_bytes=config.prefix_memory_mib * MIB,
            kv_bytes_per_token=model.runner.limits.kv_bytes_per_token,
            fingerprint=fingerprint,
        )

    def _heartbeat_age(self) -> float:
        return self._scheduler.seconds_since_heartbeat() if self._scheduler else 0.0


def _crash_loop() -> CrashLoop | None:
    """The guard against endless restarts, where launchd started us."""
    if platform.system() != "Darwin" or "XPC_SERVICE_NAME" not in os.environ:
        return None
    state = Path.home() / "Library" / "Application Support" / "edgekit"
    state.mkdir(parents=True, exist_ok=True)
    return CrashLoop(state / "starts")
