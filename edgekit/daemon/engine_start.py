"""The TensorRT engine at the start: what is to be built, and the model that answers before, meanwhile or afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.check import HashProgress, check_bundle
from edgekit.config import GenerationConfig
from edgekit.daemon.build_state import BuildState
from edgekit.errors import EdgekitError, RunnerError
from edgekit.generation.engine_wanted import may_have_engine
from edgekit.generation.model import TextModel
from edgekit.generation.startup import open_model
from edgekit.machine import state_folder
from edgekit.target import Target

if TYPE_CHECKING:
    from edgekit.daemon.engine_build import EngineBuild
    from edgekit.runners.tensorrt.store import StoredEngine

__all__ = ["EngineStart"]

logger = logging.getLogger(__name__)

_OFF = "building is switched off (generation.build_engine)"


class EngineStart:
    """Plans the build of a bundle's engine, builds it if the model must wait for it, and loads the model.

    Args:
        config: The configuration.
        report: As for `EngineBuild`.
        stopping: As for `EngineBuild`.
        on_verified: Called while the bundle's files are hashed.

    Attributes:
        build: The build; None if there is nothing to build.
    """

    def __init__(
        self,
        config: GenerationConfig,
        report: Callable[[BuildState], None],
        stopping: threading.Event,
        on_verified: HashProgress,
    ) -> None:
        self.build: EngineBuild | None = None
        self._config = config
        self._report = report
        self._stopping = stopping
        self._on_verified = on_verified
        self._problem: EdgekitError | None = None
        self._stored: StoredEngine | None = None

    @property
    def state(self) -> BuildState | None:
        """How far the engine is; None if none is built, or no longer."""
        return None if self.build is None else self.build.state

    @property
    def builds_beside(self) -> bool:
        """Whether the engine is built while the model answers."""
        return self.build is not None and self.build.first.memory_bytes is not None

    @property
    def reserved_bytes(self) -> int:
        """Memory that the build takes beside the model."""
        return 0 if self.build is None else self.build.first.memory_bytes or 0

    def plan(self, bundle: Bundle, draft: Bundle | None, find_target: Callable[[], Target]) -> None:
        """Find out whether there is an engine to build.

        Args:
            bundle: The bundle.
            draft: The draft model's bundle.
            find_target: Returns what target this machine is.

        Raises:
            BundleError: The bundle is damaged.
            IncompatibleBundleError: It was made for other targets.
        """
        config = self._config
        if not may_have_engine(bundle, config):
            return
        here = find_target()
        if here.compute_capability is None:
            return
        # What builds engines takes a tenth of a second to load, and most machines build none.
        from edgekit.daemon.engine_build import EngineBuild
        from edgekit.generation.first_build import plan_first_build
        from edgekit.runners.tensorrt.build_record import BuildRecords

        # Nothing is built of files that are not what they should be.
        check_bundle(bundle, ignore_compatible=config.ignore_compatible, progress=self._on_verified)
        records = BuildRecords(state_folder())
        try:
            first = plan_first_build(bundle, config, here, records, draft=draft)
        except EdgekitError as error:
            # What is wrong with the bundle itself is found by every runner.
            self._give_up(error)
            return
        if first is not None:
            self.build = EngineBuild(first, records, self._report, self._stopping)

    def build_before_loading(self) -> None:
        """Build the engine now, if memory does not hold the model beside it; a failure is kept as the reason.

        Raises:
            StoppedError: It was cancelled.
        """
        if self.build is None or self.builds_beside:
            return
        try:
            self._stored = self.build.run()
            self.build.enter_loading()
        except EdgekitError as error:
            self.build.end()
            self._give_up(error)

    def open_model(self, bundle: Bundle, draft: Bundle | None) -> TextModel:
        """Load the model; its description says why no engine runs it.

        Args:
            bundle: The bundle.
            draft: The draft model's bundle.

        Raises:
            EdgekitError: As `generation.startup.open_model`; or the reason why there is no engine, if it must be one.
        """
        try:
            model = open_model(bundle, self._config, self._on_verified, draft=draft, explain=self._explain)
        except EdgekitError as error:
            self._reject(error)
            raise
        for one in model.info.rejected:
            if one.name == "tensorrt":
                self._reject(RunnerError(one.reason, code=one.code))
        if self._stored is not None and self.build is not None:
            self.build.end()
        return model

    def cancel(self) -> None:
        """Cancel the build."""
        if self.build is not None:
            self.build.cancel()

    def _explain(self, name: str, error: EdgekitError) -> EdgekitError:
        """Return why a runner is not used: of the engine, more is known here than that there is none."""
        if name != "tensorrt":
            return error
        if self._problem is not None:
            return self._problem
        if self.builds_beside:
            return RunnerError("its engine is being built")
        if error.code == "no_engine" and not self._config.build_engine:
            hint = f"{error.hint}; or have the daemon do it: `generation.build_engine: true`, and no `--no-build`"
            return RunnerError(f"{error.message}, and {_OFF}", hint=hint, code=error.code)
        return error

    def _reject(self, error: EdgekitError) -> None:
        if self.build is not None and self._stored is not None:
            self.build.reject(self._stored, error)

    def _give_up(self, error: EdgekitError) -> None:
        logger.warning("no engine is built: %s%s", error.message, f" (hint: {error.hint})" if error.hint else "")
        self._problem = error
