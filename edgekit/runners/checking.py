"""Base of the runners of the `portable` and `native` dialects, whose attention masks are inputs of the graph.

On the CPU they check a Jetson's bundle, slowly; with CUDA they serve it (`on_device.py`). Sequences run one after the
other; `Chunk.exact` is not supported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.graph_runner import GraphRunner
from edgekit.runners.masks import Masks
from edgekit.runners.slots import FloatArray, TokenArray

__all__ = ["FLOAT_ACTIVATIONS", "CheckingRunner"]

# onnxruntime fuses DequantizeLinear and MatMul into MatMulNBits; level 1 keeps it from quantizing activations.
FLOAT_ACTIVATIONS = {"session.qdq_matmulnbits_accuracy_level": "1"}


class CheckingRunner(GraphRunner):
    """Runs a graph whose masks are inputs; arguments as for `GraphRunner`."""

    _entries: ClassVar[Mapping[str, str]] = FLOAT_ACTIVATIONS

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        inputs = [value.name for value in self._session.get_inputs()]
        self._masks = Masks.of_graph(inputs, self._metadata, self._kv.dtype)

    @classmethod
    def logits(cls, folder: Path, tokens: Sequence[int], *, threads: int | None = None) -> FloatArray:
        """Run `tokens` through a graph in one step.

        Returns:
            Logits, float32 `[len(tokens), vocab]`.

        Raises:
            BundleError: The folder has no graph of this dialect.
            RunnerError: onnxruntime cannot load or run it.
        """
        runner = cls(folder, max_chunk=len(tokens), threads=threads)
        try:
            return runner.run([Chunk(0, tokens, "all")])[0]
        finally:
            runner.close()

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        return [self._run(chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)]

    def _run(self, chunk: Chunk, tokens: TokenArray) -> FloatArray:
        length, count = self._lengths[chunk.slot], tokens.size
        feeds: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": tokens[None],
            "position_ids": np.arange(length, length + count)[None],
            "logits_index": np.arange(count) if chunk.logits == "all" else np.array([count - 1]),
            **self._masks.step(length, count, self._columns(chunk.slot, length, count)),
        }
        logits = self._append(chunk.slot, length, feeds)
        self._lengths[chunk.slot] = length + count
        return logits[:0] if chunk.logits == "none" else logits

    @abstractmethod
    def _columns(self, slot: int, length: int, count: int) -> npt.NDArray[np.int64]:
        """Make room for `count` new tokens, and return the position of each column of the masks: see `Masks.step`."""

    @abstractmethod
    def _append(self, slot: int, length: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        """Run the graph on a slot with `length` tokens, store the new KV cache, and return the logits `[n, vocab]`."""
