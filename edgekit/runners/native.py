"""Runs the `native` dialect on the CPU: slow, and as TensorRT would compute it.

It is for looking at a Jetson bundle's answers on a workstation, not for serving. The KV cache is bound in place, as
TensorRT demands: every step writes its rows into the buffer that it reads.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.checking import CheckingRunner
from edgekit.runners.slots import FloatArray

__all__ = ["NativeRunner"]


class NativeRunner(CheckingRunner):
    """A `Runner` of `native` graphs over onnxruntime's CPU provider; arguments as for `GraphRunner`."""

    _dialect: ClassVar[str] = "native"

    def _append(self, slot: int, held: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        feeds["write_indices"] = np.array([held])
        logits = np.empty((1, feeds["logits_index"].size, self._limits.vocab_size), np.float32)
        inputs = {name: self._value(np.ascontiguousarray(value)) for name, value in feeds.items()}
        binding = self._bind(self._cache_of(slot, slot + 1), inputs, self._value(logits))
        self._session.run_with_iobinding(binding)
        row: FloatArray = logits[0]
        return row
