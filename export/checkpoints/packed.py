"""Reads safetensors with packed linear layers: integer codes are unpacked into one weight `[out, in]` per module.

Common to GPTQ and AWQ: a module `X` is `X.qweight`, `X.qzeros`, `X.scales` (and `X.g_idx`), and its weight is
`(code - zero point) * scale`. A `Layout` (`gptq`, `awq`) defines how `qweight` packs the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import FloatArray, TensorInfo, row_range
from edgekit.export.checkpoints.files import DOWNLOAD_AGAIN, BoundedFile
from edgekit.export.checkpoints.floats import FLOATS
from edgekit.export.checkpoints.safetensors import Shards
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["Layout", "Module", "PackedShards", "Slice", "damaged"]

Codes = npt.NDArray[np.uint8]
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Module:
    """One packed linear layer.

    Attributes:
        name: Its name, without `.weight`.
        shape: `(out, in)`.
        bits: Bits per code.
        groups: Number of groups of inputs that share a scale.
        group_size: Inputs per group, as the configuration states it; `g_idx` takes precedence.
        has_index: Whether it has a `g_idx`.
        reordered: Whether `g_idx` is required to assign inputs to groups.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    groups: int
    group_size: int
    has_index: bool = False
    reordered: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of a module.

    Attributes:
        codes: uint8 `[rows, in]`.
        zeros: uint8 `[rows, groups]`.
    """

    codes: Codes
    zeros: npt.NDArray[Any]


class Layout(Protocol):
    """How a format packs one module."""

    @property
    def encoding(self) -> str:
        """The format's name, as `TensorInfo` gives it."""

    @property
    def group_size(self) -> int | None:
        """Inputs per group; None is all of them."""

    def describe(self, name: str, parts: Mapping[str, TensorInfo]) -> Module:
        """Check the shapes of a module's parts (`qweight`, …) against each other.

        Raises:
            ExportError: They contradict each other, or the layout is not supported.
        """

    def unpack(self, shards: Shards, module: Module, start: int, stop: int) -> Slice:
        """Read the rows `start:stop` of a module."""


class PackedShards:
    """The tensors of a folder with packed modules unpacked; the others pass through.

    Args:
        shards: The folder's tensors as stored. If the constructor raises, the caller closes them.
        layout: How modules are packed.

    Raises:
        ExportError: A module lacks a part, or its parts contradict each other.
    """

    def __init__(self, shards: Shards, layout: Layout) -> None:
        self._shards = shards
        self._layout = layout
        self._modules: dict[str, Module] = {}
        self.infos = {name: info for name, info in shards.infos.items() if not _is_part(name, shards.infos)}
        for name in shards.infos:
            if name.endswith(".qweight"):
                module = self._describe(name.removesuffix(".qweight"))
                weight = f"{module.name}.weight"
                if weight in self.infos:
                    raise ExportError(f"the checkpoint has `{weight}` both packed and unpacked", hint=DOWNLOAD_AGAIN)
                self._modules[weight] = module
                self.infos[weight] = TensorInfo(weight, module.shape, layout.encoding)

    @property
    def files(self) -> tuple[BoundedFile, ...]:
        """The files, sorted by name; this object closes them."""
        return self._shards.files

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        """Read one tensor, or some of its rows; see `Checkpoint.read`.

        A packed module is returned on its grid, unless its groups are not runs of consecutive inputs (`desc_act`) or
        its scales are too precise for `code * scale + offset` to be exact in float32; then its exact values are.
        """
        module = self._modules.get(name)
        if module is None:
            return self._shards.read(name, start, stop)
        start, stop = row_range(self.infos[name], start, stop)
        part = self._layout.unpack(self._shards, module, start, stop)
        scales = np.ascontiguousarray(self._shards.read_columns(f"{module.name}.scales", start, stop).T)
        zeros = part.zeros.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            offsets = -(zeros * scales)
        if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
            raise ExportError(
                f"`{module.name}.scales` contains NaN, infinity or a number too large for float32",
                hint="fetch it again",
            )
        group_of = self._group_of_inputs(module)
        if group_of is None and not self._has_fine_scales(module):
            return GroupedTensor(codes=part.codes, scales=scales, offsets=offsets, bits=module.bits)
        if group_of is None:
            group_of = np.arange(module.shape[1]) // (module.shape[1] // module.groups)
        values = part.codes.astype(np.float32)
        values -= zeros[:, group_of]
        with np.errstate(over="ignore"):
            values *= scales[:, group_of]
        return values

    def close(self) -> None:
        """Close the files."""
        self._shards.close()

    def _describe(self, name: str) -> Module:
        infos = self._shards.infos
        parts = {part: infos[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in infos}
        missing = next((part for part in ("qzeros", "scales") if part not in parts), None)
        if missing is not None:
            raise ExportError(f"the checkpoint has `{name}.qweight` but no `{name}.{missing}`", hint=DOWNLOAD_AGAIN)
        for part, info in parts.items():
            valid = info.encoding in FLOATS if part == "scales" else info.encoding == "I32"
            if not valid or len(info.shape) != (1 if part == "g_idx" else 2):
                raise damaged(name, f"`{part}` is {info.encoding} with shape {list(info.shape)}")
        module = self._layout.describe(name, parts)
        out, width = module.shape
        if not (out and width and module.groups):
            raise damaged(name, "it is empty")
        return module

    def _group_of_inputs(self, module: Module) -> npt.NDArray[np.intp] | None:
        """The group of every input; None where the groups are runs of the same length, in order."""
        width = module.shape[1]
        stated = np.arange(width) // module.group_size
        index = self._shards.read_integers(f"{module.name}.g_idx") if module.has_index else stated
        if not index.any():  # left at zero by writers that do not reorder
            if module.reordered and module.groups > 1:
                raise damaged(module.name, "its inputs are reordered (desc_act), but its g_idx is all zeros")
            index = stated
        if index.min() < 0 or index.max() >= module.groups:
            raise damaged(module.name, f"its g_idx has a group beyond its {module.groups}")
        if width % module.groups == 0 and np.array_equal(index, np.arange(width) // (width // module.groups)):
            return None
        return index.astype(np.intp)

    def _has_fine_scales(self, module: Module) -> bool:
        """Whether a scale has too many bits for its product with an 8-bit integer to be exact in float32.

        16-bit scales do not. Otherwise all are checked, so that every range of rows is returned in the same form.
        """
        name = f"{module.name}.scales"
        if self._shards.infos[name].encoding not in {"F32", "F64"}:
            return False
        return bool((self._shards.read(name).view(np.uint32) & 0xFF).any())


def damaged(name: str, why: str) -> ExportError:
    """Return the error for a module whose parts do not form a weight."""
    return ExportError(f"the packed weight of `{name}` is damaged: {why}", hint=DOWNLOAD_AGAIN)


def _is_part(name: str, infos: Mapping[str, TensorInfo]) -> bool:
    module, _, part = name.rpartition(".")
    return part in _PARTS and f"{module}.qweight" in infos
