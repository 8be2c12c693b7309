"""GPTQ as AutoGPTQ and GPTQModel store it: codes of 2, 3, 4 or 8 bits packed along the inputs.

Source: `pack()` of AutoGPTQ 0.7.1's `qlinear_cuda_old` and the conversion of formats in GPTQModel's `utils/model.py`.
With `n` codes in 32 bits, `qweight` is int32 `[in / n, out]`, the first input in the lowest bits; `qzeros` is int32
`[groups, out / n]`, the first output in the lowest bits; 3-bit codes cross word boundaries. Format `gptq` stores zero
points minus one. GPTQModel subtracts on whole words, so one is added to whole words here: if no zero point is 0, that
is the same as adding one to each. Format `gptq_v2` stores them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TensorInfo
from edgekit.export.checkpoints.packed import Module, Slice, damaged
from edgekit.export.checkpoints.safetensors import Shards

__all__ = ["Gptq"]

_BITS = (4, 8, 2, 3)
_FORMATS = {"gptq": True, "gptq_v2": False}
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True, slots=True)
class Gptq:
    """The layout of one checkpoint.

    Attributes:
        bits: Bits per code where the shapes of a module are ambiguous; modules may differ (`dynamic`).
        group_size: Inputs per group; None is all of them.
        zeros_minus_one: Whether zero points are stored minus one.
        reordered: Whether only `g_idx` assigns inputs to groups (`desc_act`).
    """

    bits: int
    group_size: int | None
    zeros_minus_one: bool
    reordered: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Gptq:
        """Read the layout from `quantization_config` or `quantize_config.json`.

        Raises:
            ExportError: edgekit does not read this layout.
        """
        name = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if settings.get("is_marlin_format"):
            name = "marlin"
        if not isinstance(name, str) or name not in _FORMATS:
            raise ExportError(
                f"the checkpoint's GPTQ format is `{str(name)[:40]}`, which edgekit does not read",
                hint=f"it reads {' and '.join(_FORMATS)}, which GPTQModel writes by default",
                code="unsupported_encoding",
            )
        bits, size = settings.get("bits"), settings.get("group_size", -1)
        if type(bits) is not int or bits not in _BITS:
            raise ExportError(
                f"the checkpoint has GPTQ codes of {str(bits)[:40]} bits, which edgekit does not read",
                hint=f"it reads {', '.join(map(str, sorted(_BITS)))} bits",
                code="unsupported_encoding",
            )
        if type(size) is not int or size < -1 or size == 0:
            raise ExportError(f"the checkpoint's GPTQ group size is {str(size)[:40]}, not a positive integer or -1")
        # Static groups hold neighbouring inputs, in whatever order these were quantized.
        reordered = bool(settings.get("desc_act")) and not settings.get("static_groups")
        return cls(bits, None if size == -1 else size, _FORMATS[name], reordered)

    @property
    def encoding(self) -> str:
        """`GPTQ`."""
        return "GPTQ"

    def describe(self, name: str, parts: Mapping[str, TensorInfo]) -> Module:
        """Check the shapes of a module's parts; see `Layout`."""
        groups, out = parts["scales"].shape
        words = parts["qweight"].shape[0]
        index = parts.get("g_idx")
        if parts["qweight"].shape[1] != out or parts["qzeros"].shape[0] != groups:
            raise damaged(name, "the shapes of its codes, scales and zero points do not match")
        for bits in sorted(_BITS, key=lambda number: number != self.bits):
            width = words * 32 // bits if index is None else index.shape[0]
            if width * bits == words * 32 and -(-out * bits // 32) == parts["qzeros"].shape[1]:
                break
        else:
            raise damaged(name, "no bit width fits the shapes of its codes and zero points")
        size = min(self.group_size or width, width) or 1
        if -(-width // size) != groups:  # a module with its own settings
            if not groups or width % groups:
                raise damaged(name, f"{width} inputs do not make {groups} groups of {size}")
            size = max(1, width // groups)
        if self.reordered and groups > 1 and index is None:
            raise damaged(name, "its inputs are reordered (desc_act), but it has no g_idx")
        return Module(name, (out, width), bits, groups, size, index is not None, self.reordered)

    def unpack(self, shards: Shards, module: Module, start: int, stop: int) -> Slice:
        """Read some rows; see `Layout`."""
        words = shards.read_columns(f"{module.name}.qweight", start, stop)
        codes = _unpack(words.T, module.bits)
        # Zero points are packed in whole words, so some before and after the rows are read too.
        unit = lcm(32, module.bits)
        first, last = start * module.bits // unit, -(-stop * module.bits // unit)
        per_word = unit // 32
        columns = shards.infos[f"{module.name}.qzeros"].shape[1]
        packed = shards.read_columns(f"{module.name}.qzeros", first * per_word, min(last * per_word, columns))
        if self.zeros_minus_one and module.bits in _ONES:
            packed = (packed.view(np.uint32) + np.uint32(_ONES[module.bits])).view(np.int32)
        skipped = start - first * unit // module.bits
        zeros = _unpack(packed, module.bits)[:, skipped : skipped + stop - start]
        if self.zeros_minus_one and module.bits not in _ONES:
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << module.bits) - 1)
        return Slice(codes, np.ascontiguousarray(zeros.T))


def _unpack(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Unpack codes from each row of words, lowest bits first: `[n, words]` to `[n, words * 32 / bits]`."""
    stream: npt.NDArray[np.uint8] = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return stream
    if bits == 3:
        single = np.unpackbits(stream, axis=1, bitorder="little")
        single = single[:, : single.shape[1] // 3 * 3].reshape(len(stream), single.shape[1] // 3, 3)
        joined: npt.NDArray[np.uint8] = single[:, :, 0] | (single[:, :, 1] << np.uint8(1))
        joined |= single[:, :, 2] << np.uint8(2)
        return joined
    lanes, mask = 8 // bits, np.uint8((1 << bits) - 1)
    codes = np.empty((len(stream), stream.shape[1] * lanes), dtype=np.uint8)
    for lane in range(lanes):
        np.bitwise_and(stream >> np.uint8(lane * bits), mask, out=codes[:, lane::lanes])
    return codes
