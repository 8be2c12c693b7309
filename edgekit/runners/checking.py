"""What the runners of TensorRT's dialects share: they run on the CPU, slowly, to check a Jetson's bundle.

Masks are inputs of these graphs. Sequences are run one after the other, and nothing is promised of `Chunk.exact`.
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

__all__ = ["CheckingRunner"]


class CheckingRunner(GraphRunner):
    """Opens a graph whose masks are inputs; arguments as for `GraphRunner`. Its subclasses run it."""

    # onnxruntime turns DequantizeLinear and MatMul into its own operator; 1 keeps it from rounding activations.
    _entries: ClassVar[Mapping[str, str]] = {"session.qdq_matmulnbits_accuracy_level": "1"}

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        inputs = [value.name for value in self._session.get_inputs()]
        self._masks = Masks.of_graph(inputs, self._metadata, self._kv.arrays[0].dtype)

    @classmethod
    def logits(cls, folder: Path, tokens: Sequence[int], *, threads: int | None = None) -> FloatArray:
        """Run `tokens` through a graph at once.

        Returns:
            Logits, float32 `[len(tokens), vocab]`.

        Raises:
            BundleError: The folder holds no graph of this dialect.
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
        held, count = self._lengths[chunk.slot], tokens.size
        feeds: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": tokens[None],
            "position_ids": np.arange(held, held + count)[None],
            "logits_index": np.arange(count) if chunk.logits == "all" else np.array([count - 1]),
            **self._masks.step(held, count),
        }
        logits = self._append(chunk.slot, held, feeds)
        self._lengths[chunk.slot] = held + count
        return logits[:0] if chunk.logits == "none" else logits

    @abstractmethod
    def _append(self, slot: int, held: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        """Run the graph on a slot that holds `held` tokens, keep the new KV cache, and give the logits `[n, vocab]`."""
