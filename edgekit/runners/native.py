"""Runs the `native` dialect on the CPU, with TensorRT's numerics: slow.

For checking a Jetson bundle's answers on a workstation, not for serving. The KV cache is bound in place, as TensorRT
requires: every step writes its rows into the buffer that it reads, all of which it attends to but for the masks.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.bucketed_cache import BucketedKvCache
from edgekit.runners.checking import CheckingRunner
from edgekit.runners.kv_cache import KvCache
from edgekit.runners.masks import PADDING
from edgekit.runners.slots import FloatArray

__all__ = ["NativeRunner"]


class NativeRunner(CheckingRunner):
    """A `Runner` of `native` graphs over onnxruntime's CPU provider; arguments as for `GraphRunner`."""

    _dialect: ClassVar[str] = "native"
    _cache_type: ClassVar[type[KvCache]] = BucketedKvCache
    _kv: BucketedKvCache

    def _columns(self, slot: int, length: int, count: int) -> npt.NDArray[np.int64]:
        self._kv.reserve(slot, length, length + count)
        columns = np.arange(self._kv.stride(slot))
        columns[length + count :] = PADDING
        return columns

    def _append(self, slot: int, length: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        feeds["write_indices"] = np.array([length])
        logits = np.empty((1, feeds["logits_index"].size, self._limits.vocab_size), np.float32)
        inputs = {name: self._value(np.ascontiguousarray(value)) for name, value in feeds.items()}
        cache = [self._value(view[None]) for view in self._kv.views(slot)]
        self._session.run_with_iobinding(self._bind(cache, inputs, self._value(logits)))
        row: FloatArray = logits[0]
        return row
