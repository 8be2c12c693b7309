"""AWQ in AutoAWQ's GEMM layout: 4-bit codes packed along the outputs, in an interleaved order.

Source: `WQLinear_GEMM.from_linear` and `utils/packing_utils.py` of AutoAWQ 0.2.9. `qweight` is int32 `[in, out / 8]`,
`qzeros` is int32 `[groups, out / 8]`; the lowest four bits of a word belong to output 0 of its eight, the next to 2, 4,
6, 1, 3, 5 and 7. Zero points are stored unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TensorInfo
from edgekit.export.checkpoints.packed import Module, Slice, damaged
from edgekit.export.checkpoints.safetensors import Shards

__all__ = ["Awq"]

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Columns of words unpacked at a time, so that they stay in the CPU cache.
_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class Awq:
    """The layout of one checkpoint.

    Attributes:
        group_size: Inputs per group; None is all of them.
    """

    group_size: int | None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Awq:
        """Read the layout from `quantization_config`, or from the `quant_config.json` of early versions.

        Raises:
            ExportError: edgekit does not read this layout.
        """
        version = str(settings.get("version", "gemm")).lower()
        backend = str(settings.get("backend", "autoawq")).lower()
        if version != "gemm" or backend != "autoawq":
            which = version if version != "gemm" else backend
            raise ExportError(
                f"the checkpoint's AWQ layout is `{which[:40]}`, which edgekit does not read",
                hint="it reads AutoAWQ's layout `gemm`, in which most checkpoints are published",
                code="unsupported_encoding",
            )
        bits = settings.get("bits", settings.get("w_bit", 4))
        if type(bits) is not int or bits != 4:
            raise ExportError(
                f"the checkpoint has AWQ codes of {str(bits)[:40]} bits, which edgekit does not read",
                hint="AutoAWQ itself writes 4 bits only",
                code="unsupported_encoding",
            )
        size = settings.get("group_size", settings.get("q_group_size", 128))
        if type(size) is not int or size < -1 or size == 0:
            raise ExportError(f"the checkpoint's AWQ group size is {str(size)[:40]}, not a positive integer or -1")
        return cls(None if size == -1 else size)

    @property
    def encoding(self) -> str:
        """`AWQ`."""
        return "AWQ"

    def describe(self, name: str, parts: Mapping[str, TensorInfo]) -> Module:
        """Check the shapes of a module's parts; see `Layout`."""
        groups, out = parts["scales"].shape
        width, words = parts["qweight"].shape
        if words * 8 != out or parts["qzeros"].shape != (groups, words) or "g_idx" in parts:
            raise damaged(name, "the shapes of its codes, scales and zero points do not match")
        size = self.group_size or max(1, width)
        if size * groups != width:
            raise damaged(name, f"{width} inputs do not make {groups} groups of {size}")
        return Module(name, (out, width), 4, groups, size)

    def unpack(self, shards: Shards, module: Module, start: int, stop: int) -> Slice:
        """Read some rows; see `Layout`."""
        first, last = start // 8, -(-stop // 8)
        rows = slice(start - first * 8, stop - first * 8)
        codes = _unpack(shards.read_columns(f"{module.name}.qweight", first, last))[rows]
        return Slice(codes, _unpack(shards.read_columns(f"{module.name}.qzeros", first, last))[rows])


def _unpack(words: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Unpack words `[n, out / 8]` to codes `[out, n]`."""
    count, columns = words.shape
    codes = np.empty((columns, 8, count), dtype=np.uint8)
    for first in range(0, columns, _COLUMNS):
        span = slice(first, first + _COLUMNS)
        # Split words into byte planes, `[4, columns, n]`: the loop below works on single bytes, which is fast.
        lanes = np.ascontiguousarray(words[:, span].T).view(np.uint8).reshape(-1, count, 4).transpose(2, 0, 1).copy()
        for number, pair in enumerate(lanes):
            np.bitwise_and(pair, np.uint8(15), out=codes[span, _ORDER[2 * number]])
            np.right_shift(pair, np.uint8(4), out=codes[span, _ORDER[2 * number + 1]])
    return codes.reshape(columns * 8, count)
