"""Runs the `portable` dialect on the CPU: slow, and as TensorRT would compute it.

It is for looking at a Jetson bundle's answers on a workstation, not for serving: every step copies the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.checking import CheckingRunner

__all__ = ["PortableRunner", "portable_logits"]

FloatArray = npt.NDArray[np.float32]


class PortableRunner(CheckingRunner):
    """A `Runner` of `portable` graphs over onnxruntime's CPU provider; arguments as for `OnnxRuntimeRunner`."""

    _dialect: ClassVar[str] = "portable"

    def _run(self, chunk: Chunk, tokens: npt.NDArray[np.int64]) -> FloatArray:
        held, count = self._lengths[chunk.slot], tokens.size
        rows = np.arange(count) if chunk.logits == "all" else np.array([count - 1])
        feeds = {
            "input_ids": tokens[None],
            "position_ids": np.arange(held, held + count)[None],
            "logits_index": rows,
            **self._masks.step(held, count),
        }
        past = {
            f"past_{name}": cache[chunk.slot, None, :, :held]
            for name, cache in zip(self._names, self._cache, strict=True)
        }
        wanted = ["logits", *(name.replace("key_values", "present") for name in self._names)]
        logits, *present = self._session.run(wanted, feeds | {k: np.ascontiguousarray(v) for k, v in past.items()})
        for cache, new in zip(self._cache, present, strict=True):
            cache[chunk.slot, :, held : held + count] = new[0]
        self._lengths[chunk.slot] = held + count
        rows_wanted: FloatArray = logits[0, :0] if chunk.logits == "none" else logits[0]
        return rows_wanted


def portable_logits(folder: Path, tokens: Sequence[int], *, threads: int | None = None) -> FloatArray:
    """Run `tokens` through a `portable` graph at once.

    Returns:
        Logits, float32 `[len(tokens), vocab]`.

    Raises:
        BundleError: The folder holds no graph of this dialect.
        RunnerError: onnxruntime cannot load or run it.
    """
    runner = PortableRunner(folder, max_chunk=len(tokens), threads=threads)
    try:
        return runner.run([Chunk(0, tokens, "all")])[0]
    finally:
        runner.close()
