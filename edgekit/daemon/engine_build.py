"""Builds a bundle's TensorRT engine in child processes, says how far it is, and remembers what must not be repeated."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edgekit.daemon.build_state import BuildState
from edgekit.daemon.retry import StoppedError
from edgekit.errors import EdgekitError, RunnerError
from edgekit.generation.first_build import FirstBuild
from edgekit.runners.tensorrt.build import BuildProgress
from edgekit.runners.tensorrt.build_record import BuildRecord, BuildRecords
from edgekit.runners.tensorrt.prepare import prepare_engine
from edgekit.runners.tensorrt.store import EngineStore, StoredEngine

__all__ = ["EngineBuild"]

logger = logging.getLogger(__name__)

STALL_S = 600.0
"""Time without progress after which a build is cancelled: its process neither computed nor reported anything."""
REPORT_S = 5.0
"""Interval of reports."""
_LOG_PERCENT = 10
# The service manager ends the builder at the same time as this process.
_SIGNAL_S = 2.0
# Failures that the same inputs have again.
_LASTING = frozenset({"build_failed", "self_test_failed"})


class EngineBuild:
    """One build.

    Args:
        first: What to build.
        records: What became of earlier builds.
        report: Called on the thread of `run` with every new phase, and every few seconds.
        stopping: Cancels the build, as `cancel` does.
    """

    def __init__(
        self,
        first: FirstBuild,
        records: BuildRecords,
        report: Callable[[BuildState], None],
        stopping: threading.Event,
    ) -> None:
        self.first = first
        self.state: BuildState | None = BuildState("building")
        """None once it is over."""
        self._records = records
        self._report = report
        self._stopping = stopping
        self._cancelled = threading.Event()
        self._progress_at = self._beat = time.monotonic()
        self._next_report = 0.0
        self._logged = 0

    def run(self) -> StoredEngine:
        """Build the engine, or take the one that another process has built meanwhile.

        Raises:
            StoppedError: It was cancelled; nothing is left behind.
            EdgekitError: It failed.
        """
        first, before = self.first, self._records.get(self.first.key)
        self._records.put(first.key, replace(before, unfinished=before.unfinished + 1))
        began = self._progress_at = time.monotonic()
        logger.info("building the TensorRT engine of %s", first.plan.bundle.path)
        self._enter(BuildState("building"))
        try:
            prepared = prepare_engine(
                first.plan,
                progress=self._on_progress,
                waiting=self._on_waiting,
                check=self._check,
                memory_bytes=first.memory_bytes,
            )
        except StoppedError:
            self._records.put(first.key, before)
            raise
        except EdgekitError as error:
            if error.code == "build_stopped" and self._stopping.wait(_SIGNAL_S):
                self._records.put(first.key, before)
                raise StoppedError from error
            self._forget(error)
            raise
        self._records.put(first.key, BuildRecord())
        if prepared.report is None:
            logger.info("another process has built the TensorRT engine")
        else:
            logger.info("built the TensorRT engine in %.0f s", time.monotonic() - began)
        return prepared.stored

    def reject(self, stored: StoredEngine, error: EdgekitError) -> None:
        """Have no start load or build an engine again, if what is wrong with it would be again.

        Args:
            stored: The engine, which could not be used.
            error: The reason.
        """
        if error.code in _LASTING:
            try:
                EngineStore().remove(stored)
            except EdgekitError as failed:
                logger.warning("the rejected engine stays: %s", failed.message)
            self._forget(error)

    def enter_loading(self) -> None:
        """Say that the engine is built, and is being loaded and tested."""
        state = BuildState("loading", 1.0)
        logger.info("%s", state)
        self._enter(state)

    def end(self) -> None:
        """Say that nothing more happens."""
        self.state = None

    def cancel(self) -> None:
        """Cancel it at once; any thread may call this."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set() or self._stopping.is_set()

    def seconds_stalled(self) -> float:
        """Seconds for which the thread of `run` has done nothing, beyond what reading an engine from a disk takes."""
        building = self.state is not None and self.state.phase != "loading"
        return max(0.0, time.monotonic() - self._beat - STALL_S) if building else 0.0

    def _forget(self, error: EdgekitError) -> None:
        """End an attempt: remember why, if another one would end like it."""
        failure = error.message if error.code in _LASTING else ""
        self._records.put(self.first.key, BuildRecord(failure=failure))

    def _on_progress(self, progress: BuildProgress) -> None:
        self._progress_at = time.monotonic()
        self._check()
        state = BuildState("building", progress.share)
        if state.percent >= self._logged + _LOG_PERCENT:
            self._logged = state.percent - state.percent % _LOG_PERCENT
            logger.info("%s, segment %d of %d", state, progress.segment + 1, progress.segments)
        self._enter(state)

    def _on_waiting(self) -> None:
        # The other process watches over its own build.
        self._progress_at = time.monotonic()
        self._check()
        if self.state != BuildState("waiting"):
            logger.info("%s", BuildState("waiting"))
        self._enter(BuildState("waiting"))

    def _check(self) -> None:
        """Raise if the build must end."""
        now = self._beat = time.monotonic()
        if self.cancelled:
            raise StoppedError
        if now - self._progress_at > STALL_S:
            raise RunnerError(f"TensorRT's builder has done nothing for {STALL_S:.0f} s", code="build_failed")
        if self.state is not None and now >= self._next_report:
            self._say(now)

    def _enter(self, state: BuildState) -> None:
        before, self.state = self.state, state
        now = time.monotonic()
        if before is None or before.phase != state.phase or now >= self._next_report:
            self._say(now)

    def _say(self, now: float) -> None:
        self._next_report = now + REPORT_S
        if self.state is not None:
            self._report(self.state)
