"""Runs the `portable` dialect on the CPU: slow, and as TensorRT would compute it.

It is for looking at a Jetson bundle's answers on a workstation, not for serving: every step copies the KV cache.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.checking import CheckingRunner
from edgekit.runners.slots import FloatArray

__all__ = ["PortableRunner"]


class PortableRunner(CheckingRunner):
    """A `Runner` of `portable` graphs over onnxruntime's CPU provider; arguments as for `GraphRunner`."""

    _dialect: ClassVar[str] = "portable"

    def _append(self, slot: int, held: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        count = feeds["input_ids"].size
        for name, array in zip(self._names, self._kv.arrays, strict=True):
            feeds[f"past_{name}"] = np.ascontiguousarray(array[slot, None, :, :held])
        wanted = ["logits", *(name.replace("key_values", "present") for name in self._names)]
        logits, *present = self._session.run(wanted, feeds)
        for array, new in zip(self._kv.arrays, present, strict=True):
            array[slot, :, held : held + count] = new[0]
        row: FloatArray = logits[0]
        return row
