"""Runs the `native` dialect on the CPU: slow, and as TensorRT would compute it.

It is for looking at a Jetson bundle's answers on a workstation, not for serving. The KV cache is bound in place, as
TensorRT demands: every step writes its rows into the buffer that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.checking import CheckingRunner

__all__ = ["NativeRunner", "native_logits"]

FloatArray = npt.NDArray[np.float32]


class NativeRunner(CheckingRunner):
    """A `Runner` of `native` graphs over onnxruntime's CPU provider; arguments as for `OnnxRuntimeRunner`."""

    _dialect: ClassVar[str] = "native"

    def _run(self, chunk: Chunk, tokens: npt.NDArray[np.int64]) -> FloatArray:
        held, count = self._lengths[chunk.slot], tokens.size
        rows = np.arange(count) if chunk.logits == "all" else np.array([count - 1])
        logits = np.empty((1, rows.size, self._limits.vocab_size), np.float32)
        feeds: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": tokens[None],
            "position_ids": np.arange(held, held + count)[None],
            "write_indices": np.array([held]),
            "logits_index": rows,
            **self._masks.step(held, count),
        }
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._value(np.ascontiguousarray(value)))
        for name, value in zip(self._names, self._bound[chunk.slot], strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(name.replace("key_values", "present"), value)
        binding.bind_ortvalue_output("logits", self._value(logits))
        self._session.run_with_iobinding(binding)
        self._lengths[chunk.slot] = held + count
        rows_wanted: FloatArray = logits[0, :0] if chunk.logits == "none" else logits[0]
        return rows_wanted


def native_logits(folder: Path, tokens: Sequence[int], *, threads: int | None = None) -> FloatArray:
    """Run `tokens` through a `native` graph at once.

    Returns:
        Logits, float32 `[len(tokens), vocab]`.

    Raises:
        BundleError: The folder holds no graph of this dialect.
        RunnerError: onnxruntime cannot load or run it.
    """
    runner = NativeRunner(folder, max_chunk=len(tokens), threads=threads)
    try:
        return runner.run([Chunk(0, tokens, "all")])[0]
    finally:
        runner.close()
