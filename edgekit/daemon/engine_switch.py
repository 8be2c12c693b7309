"""Builds the TensorRT engine while another runner answers, and switches to it between answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from edgekit.bundle.bundle import Bundle
from edgekit.config import GenerationConfig
from edgekit.daemon.build_state import with_reason
from edgekit.daemon.engine_build import EngineBuild
from edgekit.daemon.retry import StoppedError
from edgekit.errors import EdgekitError, RunnerError, internal_error
from edgekit.generation.engine.worker import EngineWorker, Served
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.startup import load_other_runner, plan_memory, serve_within
from edgekit.machine import available_bytes, gpu_free_bytes
from edgekit.memory import GIB, RUNTIMES
from edgekit.runners.tensorrt.store import StoredEngine

__all__ = ["EngineSwitch"]

logger = logging.getLogger(__name__)

_LOAD_S = 600.0
"""Time to load the engine from a slow disk and to test it; after that the worker's heartbeat counts as missed."""
_JOIN_S = 10.0
_TENSORRT = "tensorrt"
_FIXED = "this bundle cannot run on a TensorRT engine: "


class EngineSwitch:
    """A thread that builds the engine and switches to it.

    Answers that have begun end on the runner that they began on; requests that wait are answered by the engine. Where
    memory does not hold both runners, the old one is closed before the engine is loaded, and loaded again if that
    fails.

    Args:
        build: The build.
        worker: Its model answers meanwhile.
        bundle: The bundle.
        config: The configuration.
        publish: Called with the model's new description.
        info: The model's description.
        draft: The draft model's bundle.
    """

    def __init__(
        self,
        build: EngineBuild,
        worker: EngineWorker,
        bundle: Bundle,
        config: GenerationConfig,
        publish: Callable[[ModelInfo], None],
        *,
        info: ModelInfo,
        draft: Bundle | None = None,
    ) -> None:
        self._build = build
        self._worker = worker
        self._bundle = bundle
        self._config = config
        self._publish = publish
        self._info = info
        self._draft = draft
        self._failure: EdgekitError | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="engine-build", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Cancel the build, or the switch; the worker must be stopped before `stop`."""
        self._build.cancel()

    def stop(self) -> None:
        """Cancel what is not done, and wait for the thread; it is abandoned if it hangs in a library."""
        self.cancel()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            self._build_and_switch()
        except StoppedError:
            logger.info("the build of the TensorRT engine was cancelled")
        except EdgekitError as error:
            if self._build.cancelled or not self._worker.accepting:
                logger.info("the switch to the TensorRT engine was cancelled")
            else:
                self._stay(error)
        except Exception as error:
            logger.exception("building the TensorRT engine failed")
            self._stay(internal_error(error))
        finally:
            self._build.end()

    def _build_and_switch(self) -> None:
        stored = self._build.run()
        self._build.enter_loading()
        try:
            info = self._switch(stored)
        except EdgekitError as error:
            self._build.reject(stored, error)
            raise
        self._build.end()
        logger.info("answers come from %s now", info.runner)
        self._publish(info)

    def _switch(self, stored: StoredEngine) -> ModelInfo:
        """Switch to the engine; if it fails, the old runner answers as before."""
        if not self._fits_beside(stored):
            logger.info("memory does not hold the engine beside the model: running answers end first")
            self._worker.switch(self._load_after_closing, limit_s=_LOAD_S)
            if self._failure is not None:
                raise self._failure
            return self._worker.info
        model = self._load(self._worker.model)
        try:
            self._worker.switch(lambda old: self._replace(old, model), limit_s=_LOAD_S)
        except BaseException:
            _close_unshared(model, self._worker.model)
            raise
        return model.info

    def _load(self, model: TextModel) -> TextModel:
        try:
            return load_other_runner(model, self._bundle, self._config, runner=_TENSORRT, draft=self._draft)
        except EdgekitError as error:
            # What was asked for is clear here.
            raise RunnerError(error.message.removeprefix(_FIXED), hint=error.hint, code=error.code) from error

    def _replace(self, old: Served, model: TextModel) -> Served:
        """Close the old runner, and serve a model that is loaded already."""
        _close_prefix(old)
        _close_unshared(old.model, model)
        return self._within_memory(model)

    def _load_after_closing(self, old: Served) -> Served:
        _close_prefix(old)
        before = old.model.runner.backend.runtime
        old.model.runner.close()
        try:
            model = self._load(old.model)
        except EdgekitError as error:
            self._failure = error
            logger.warning("the engine is not used, %s is loaded again: %s", before, error.message)
            model = self._load_again(old.model, "auto" if before.startswith(_TENSORRT) else before)
        if old.model.draft is not None and model.draft is not old.model.draft:
            old.model.draft.close()
        return self._within_memory(model)

    def _load_again(self, model: TextModel, runner: str) -> TextModel:
        try:
            return load_other_runner(model, self._bundle, self._config, runner=runner, draft=self._draft)
        except EdgekitError as error:
            # Any other error than edgekit's says that there is no model any more.
            raise RuntimeError(f"{runner} cannot be loaded again: {error.message}") from error

    def _within_memory(self, model: TextModel) -> Served:
        try:
            if model.draft is not None:
                for slot in range(model.draft.limits.sequence_slots):
                    model.draft.truncate(slot, 0)
            return serve_within(plan_memory(model, self._bundle, self._config), model, self._bundle, self._config)
        except EdgekitError as error:
            raise RuntimeError(error.message) from error

    def _give_back_memory(self, old: Served) -> Served:
        """Let the model have the memory that was kept for the builder."""
        _close_prefix(old)
        runner = old.model.runner
        try:
            for slot in range(runner.limits.sequence_slots):
                runner.truncate(slot, 0)
        except EdgekitError as error:
            raise RuntimeError(error.message) from error
        return self._within_memory(old.model)

    def _fits_beside(self, stored: StoredEngine) -> bool:
        """Whether memory holds the engine, with the KV cache of all its slots, beside the model that answers."""
        memory, card = self._bundle.manifest.memory, gpu_free_bytes()
        cache = self._config.parallel * stored.engine.context_length * memory.kv_cache_per_token
        estimates = RUNTIMES["tensorrt"]
        needed = stored.engine.size + cache + estimates.allocator + (estimates.process if card is None else 0)
        free = available_bytes() if card is None else card
        logger.info("the engine takes about %.1f GiB; %.1f are free", needed / GIB, (free or 0) / GIB)
        return free is None or needed <= free

    def _stay(self, error: EdgekitError) -> None:
        """Go on with the runner that answers, and say why."""
        logger.warning(
            "answers still come from %s: %s%s",
            self._info.runner,
            error.message,
            f" (hint: {error.hint})" if error.hint else "",
        )
        self._build.end()
        self._publish(with_reason(self._info, error.message, error.hint))
        if self._failure is None:
            # It may be stopped meanwhile, or have failed.
            with suppress(EdgekitError):
                self._worker.switch(self._give_back_memory, limit_s=_LOAD_S)


def _close_prefix(old: Served) -> None:
    if old.prefix is not None:
        old.prefix.close()


def _close_unshared(model: TextModel, other: TextModel) -> None:
    """Close what a model does not share with another."""
    model.runner.close()
    if model.draft is not None and model.draft is not other.draft:
        model.draft.close()
