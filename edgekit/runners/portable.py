"""Runs the `portable` dialect on the CPU, with TensorRT's numerics: slow.

For checking a Jetson bundle's answers on a workstation, not for serving: every step copies the KV cache.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.checking import CheckingRunner
from edgekit.runners.kv_cache import KvCache
from edgekit.runners.masks import PADDING
from edgekit.runners.slots import FloatArray

__all__ = ["PortableRunner"]


class PortableRunner(CheckingRunner):
    """A `Runner` of `portable` graphs over onnxruntime's CPU provider; arguments as for `GraphRunner`."""

    _dialect: ClassVar[str] = "portable"
    _kv: KvCache

    def _positions(self, context: int) -> tuple[int, int]:
        return context, self._padded(context)

    def _columns(self, slot: int, length: int, count: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        padded = self._padded(length)
        columns = np.arange(padded + count)
        columns[padded:] -= padded - length
        columns[length:padded] = PADDING
        return columns

    def _append(self, slot: int, length: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        count, padded = feeds["input_ids"].size, self._padded(length)
        for name, array in zip(self._names, self._kv.arrays, strict=True):
            heads, _, size = array.shape[1:]
            past = np.ascontiguousarray(array[slot, :, :padded])
            feeds[f"past_{name}"] = past.reshape(1, heads, padded // self._block, self._block, size)
        wanted = ["logits", *(name.replace("key_values", "present") for name in self._names)]
        logits, *present = self._session.run(wanted, feeds)
        for array, new in zip(self._kv.arrays, present, strict=True):
            array[slot, :, length : length + count] = new[0]
        row: FloatArray = logits[0]
        return row

    @property
    def _block(self) -> int:
        """Positions in one block of the cache that the graph reads."""
        return int(self._shapes[f"past_{self._names[0]}"][3])

    def _padded(self, length: int) -> int:
        return -(-length // self._block) * self._block
