"""Keeps what TensorRT for RTX compiles for this GPU when an engine first runs; TensorRT compiles in the build."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgekit.atomic_file import replace_file

__all__ = ["RuntimeCache"]

logger = logging.getLogger(__name__)


class RuntimeCache:
    """Creates execution contexts, with a cache of compiled kernels where the library has one.

    Args:
        path: The file of the cache, whose folder exists; it may be missing, of another version or damaged. None keeps
            nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cache: Any = None
        self._saved = b""

    def create_context(self, engine: Any, strategy: Any) -> Any:
        """Create an execution context of an engine, with an allocation strategy; None if the library could not."""
        configure = None if self._path is None else getattr(engine, "create_runtime_config", None)
        config = None if configure is None else configure()
        # TensorRT has the first from 10.16 on, but no cache.
        if config is None or not hasattr(config, "create_runtime_cache"):
            return engine.create_execution_context(strategy)
        config.set_execution_context_allocation_strategy(strategy)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def save(self) -> None:
        """Write the cache, if it has grown; a disk that is full or read-only costs the next start some seconds."""
        if self._cache is None or self._path is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._saved:
            return
        try:
            replace_file(self._path, data)
        except OSError as error:
            logger.warning("cannot keep compiled kernels in %s: %s", self._path, error.strerror)
        self._saved = data

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            data = self._path.read_bytes()
        except OSError:
            return  # the first start
        # The library refuses one that does not fit its version, the GPU or the driver.
        if self._cache.deserialize(data):
            self._saved = data
