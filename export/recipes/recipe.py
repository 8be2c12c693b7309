"""Recipes: the grid and the method by which each weight matrix is quantized.

A recipe chooses; the functions of `edgekit.export.quantization` do the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConfigError, ExportError, nearest, option
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.exact import convert_exactly
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset, as_floats
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.repack import repack
from edgekit.export.quantization.rtn import rtn
from edgekit.profile import GROUP_SIZES
from edgekit.target import Target

__all__ = ["BITS", "CALIBRATED", "METHODS", "FormatLimits", "QuantPlan", "Recipe", "recipe_for"]

FloatArray = npt.NDArray[np.float32]
Fit = Callable[[FloatArray, Grid], GroupedTensor]

METHODS = {
    "auto": "a quantized checkpoint's own codes where the target supports them, else 8-bit; lsq for floating point",
    "lsq": "4-bit, least-squares scale and offset with clipping; needs no calibration data",
    "rtn": "4-bit, round to nearest between the smallest and the largest weight of a group",
    "gptq": "4-bit, calibrated on a text: each weight compensates the rounding error of those before it",
    "awq": "4-bit, calibrated on a text: weights with large inputs are rounded more finely",
    "none": "floating point, not quantized",
}
CALIBRATED = ("gptq", "awq")
"""The `METHODS` that need a text. They quantize the embedding, and a head tied to it, by `lsq`."""
BITS = (4, 8, 16)
"""The bits that can be chosen for a tensor; 16 keeps it in the artifact's floating point."""
_DATA_FREE: dict[str, Fit] = {"lsq": lsq, "rtn": rtn}


# Of the 4-bit codes that are kept: Q4_0, Q4_1 and Q4_K.
_GGUF_GROUP = 32


@dataclass(frozen=True, slots=True)
class FormatLimits:
    """The grids that an artifact format supports, and the ones to quantize to.

    Attributes:
        offset: The most general offset that the format can represent.
        offset_4bit: The offset to use when quantizing to 4 bits.
        scale_dtype: The dtype of stored scales and offsets.
        offset_8bit: The offset to use when quantizing to 8 bits.
        bits: Supported bits per code, the default first.
        group_sizes: Supported group sizes.
        group_sizes_8bit: Group sizes for 8-bit codes, the preferred one first.
        same_groups: 8-bit codes have the groups of the 4-bit ones instead. TensorRT multiplies by all matrices of one
            input at once, and expands them to floating point in every step if their groups differ.
    """

    offset: Offset
    offset_4bit: Offset
    scale_dtype: type[np.float16 | np.float32]
    offset_8bit: Offset = Offset.SYMMETRIC
    bits: tuple[int, ...] = (4, 8)
    group_sizes: tuple[int, ...] = GROUP_SIZES
    group_sizes_8bit: tuple[int, ...] = (128, 64, 32)
    same_groups: bool = False


FORMATS = {
    "mlx": FormatLimits(Offset.FLOAT, Offset.FLOAT, np.float16, offset_8bit=Offset.FLOAT),
    # When quantizing, the gain of float offsets is not worth their bytes; 8-bit codes need no offset at all.
    "onnxruntime": FormatLimits(Offset.FLOAT, Offset.ZERO_POINT, np.float32),
    # TensorRT supports symmetric INT4. Offsets and 8 bits are emulated, which pays off only for existing codes.
    "portable": FormatLimits(Offset.FLOAT, Offset.SYMMETRIC, np.float16, same_groups=True),
    "native": FormatLimits(Offset.FLOAT, Offset.SYMMETRIC, np.float16, same_groups=True),
}


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """How one matrix is quantized. Rows may be quantized separately: no group spans two rows.

    Attributes:
        fit: The method.
        grid: The grid.
        summary: A short description of both, for the manifest.
    """

    fit: Fit
    grid: Grid
    summary: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the weight matrices of one model are quantized for one target.

    Attributes:
        method: A key of `METHODS`.
        limits: The grids that the artifact format supports.
        group_sizes: Group sizes to use; the first that divides a matrix's inputs is taken.
        chosen_bits: Bits of individual matrices, by the name of the stored tensor; the rest get the default.
    """

    method: str
    limits: FormatLimits
    group_sizes: tuple[int, ...]
    chosen_bits: Mapping[str, int] = field(default_factory=dict)

    def bits(self, linear: Linear) -> int:
        """The bits of a matrix: 4, 8 or 16."""
        return self.chosen_bits.get(linear.stored.name, self.limits.bits[0])

    def grid(self, linear: Linear, bits: int, encoding: str = "") -> Grid:
        """Return the grid to quantize a matrix to, with 4 or 8 bits.

        Args:
            linear: The matrix.
            bits: 4 or 8.
            encoding: The checkpoint's name for the storage format, if codes of the other matrices are kept.

        Raises:
            ExportError: No group size divides its inputs.
        """
        sizes = self.group_sizes
        if bits == 8 and not self.limits.same_groups:
            sizes = self.limits.group_sizes_8bit
        elif encoding.startswith(("Q", "IQ")):
            sizes = (_GGUF_GROUP,)
        size = next((size for size in sizes if linear.in_features % size == 0), None)
        if size is None:
            raise ExportError(
                f"no group size fits `{linear.name}`: none of {', '.join(map(str, sizes))} "
                f"divides its {linear.in_features} inputs",
                hint=f"try another {option('group_size')}, or {option('recipe', 'none')}",
            )
        offset = self.limits.offset_8bit if bits == 8 else self.limits.offset_4bit
        return Grid(bits, size, offset, self.limits.scale_dtype)

    def with_bits(self, decoder: Decoder, *, head: int | None, embedding: int | None) -> Recipe:
        """Return the recipe with the user's bits for the output head and the embedding.

        Args:
            decoder: The model. If its head is tied to the embedding, one choice applies to both.
            head: 4, 8 or 16; None leaves it to the method.
            embedding: Likewise.

        Raises:
            ConfigError: Head and embedding are tied but their bits differ, or the method is `none`.
        """
        for name, bits in (("head_bits", head), ("embedding_bits", embedding)):
            if bits is not None and bits not in BITS:
                raise ConfigError(f"{option(name, bits)} is not supported", hint="choose 4, 8 or 16")
        if head is None and embedding is None:
            return self
        if self.method == "none":
            raise ConfigError(
                f"{option('recipe', 'none')} keeps all tensors in floating point", hint="leave the bits out"
            )
        if decoder.tied and None not in {head, embedding} and head != embedding:
            raise ConfigError(
                "this model's output head is tied to its embedding: both have the same bits",
                hint=f"give only {option('embedding_bits')}",
            )
        chosen = dict(self.chosen_bits)
        for linear, bits in ((decoder.embedding, embedding or (head if decoder.tied else None)), (decoder.head, head)):
            if bits is not None:
                chosen[linear.name] = bits
        return replace(self, chosen_bits=chosen)

    def check_fit(self) -> None:
        """Check that the recipe can be combined with a size to fit.

        Raises:
            ConfigError: The method chooses bits itself.
        """
        if self.method in {"auto", "none"}:
            raise ConfigError(
                f"{option('fit_bytes')} chooses bits, and so does {option('recipe', self.method)}",
                hint=f"use {option('fit_bytes')} with {option('recipe', 'gptq')}, awq, lsq or rtn",
            )

    def apply(
        self, linear: Linear, stored: GroupedTensor | FloatArray, encoding: str
    ) -> tuple[GroupedTensor | FloatArray, str]:
        """Quantize one matrix.

        Args:
            linear: The matrix.
            stored: Its weight in the checkpoint, `[out, in]`.
            encoding: The checkpoint's name for the storage format, such as `F16` or `Q4_K`.

        Returns:
            The quantized matrix, and a short description of the treatment for the manifest.
        """
        if self.keeps_float(linear):
            return as_floats(stored), "floating point"
        kept = self.keep_codes(linear, stored)
        if kept is not None:
            return kept
        plan = self.plan(linear, encoding)
        return plan.fit(as_floats(stored), plan.grid), plan.summary

    def keeps_float(self, linear: Linear) -> bool:
        """Whether a matrix stays in floating point."""
        return self.method == "none" or self.chosen_bits.get(linear.stored.name) == 16

    def plan(self, linear: Linear, encoding: str) -> QuantPlan:
        """Return how to quantize a matrix whose codes are not kept.

        Args:
            linear: The matrix.
            encoding: The checkpoint's name for the storage format.

        Raises:
            ExportError: No group size divides its inputs.
        """
        # Requantizing a 4-bit tensor to another 4-bit grid costs far more quality than 8 bits cost memory
        # (docs/decisions/0006): quantized tensors get 8 bits, float tensors 4.
        if self.keeps_codes(linear) and (encoding.startswith(("Q", "IQ")) or encoding in {"GPTQ", "AWQ"}):
            grid = self.grid(linear, 8, encoding)
            return QuantPlan(_with_name(linear, rtn), grid, f"8-bit, group {grid.group_size}")
        fit, grid = self.fit, self.grid(linear, self.bits(linear))
        return QuantPlan(_with_name(linear, fit), grid, f"{fit.__name__} {grid.bits}-bit, group {grid.group_size}")

    @property
    def fit(self) -> Fit:
        """The data-free method."""
        return _DATA_FREE.get(self.method, lsq)

    def summary(self, used: Counter[str], calibration: Mapping[str, object] | None = None) -> dict[str, object]:
        """Return the manifest's entry for the recipe.

        Args:
            used: Number of matrices by treatment.
            calibration: The entry for the calibration text, if there is one.
        """
        counts = used.most_common()
        words = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} ({count})" for name, count in counts)
        entry: dict[str, object] = {"method": self.method, "summary": words, "matrices": dict(counts)}
        return entry if calibration is None else {**entry, "calibration": dict(calibration)}

    def keeps_codes(self, linear: Linear) -> bool:
        """Whether the codes of a quantized tensor are kept if the format supports them."""
        return self.method == "auto" and linear.stored.name not in self.chosen_bits

    def keep_codes(self, linear: Linear, stored: GroupedTensor | FloatArray) -> tuple[GroupedTensor, str] | None:
        """Return a quantized tensor with its codes kept; None unless the recipe keeps codes and the format can."""
        if not self.keeps_codes(linear) or not isinstance(stored, GroupedTensor):
            return None
        for grid in self._grids(stored):
            exact = convert_exactly(stored, grid)
            if exact is not None:
                return exact, f"exact {grid.bits}-bit, group {grid.group_size}"
        for grid in self._grids(stored):
            kept = repack(stored, grid)
            if kept is not None:
                return kept, f"{grid.bits}-bit codes kept, group {grid.group_size}"
        return None

    def _grids(self, stored: GroupedTensor) -> list[Grid]:
        """The format's grids, closest to the tensor's own first: fewer bits first, then larger groups."""
        sizes = sorted((size for size in self.limits.group_sizes if stored.group_size % size == 0), reverse=True)
        all_bits = sorted(bits for bits in self.limits.bits if bits >= stored.bits)
        return [Grid(bits, size, self.limits.offset, self.limits.scale_dtype) for bits in all_bits for size in sizes]


def _with_name(linear: Linear, fit: Fit) -> Fit:
    """Wrap a method so that its errors name the matrix."""

    def named(weight: FloatArray, grid: Grid) -> GroupedTensor:
        try:
            return fit(weight, grid)
        except ExportError as error:
            raise ExportError(f"`{linear.weight}`: {error.message}", hint=error.hint, code=error.code) from error

    return named


def recipe_for(target: Target, method: str, group_size: int | None) -> Recipe:
    """Return the recipe for a target.

    Args:
        target: The device profile.
        method: A key of `METHODS`.
        group_size: None takes the target's list.

    Raises:
        ConfigError: The method is unknown, or the target's format does not support the group size.
    """
    if method not in METHODS:
        near = nearest(method, METHODS)
        raise ConfigError(
            f"unknown recipe `{method}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"known recipes: {', '.join(METHODS)}",
        )
    limits = FORMATS[target.dialect or target.artifact]
    if group_size is not None and group_size not in limits.group_sizes:
        raise ConfigError(
            f"target `{target.name}` does not support group size {group_size}",
            hint=f"choose one of {', '.join(map(str, limits.group_sizes))}",
        )
    return Recipe(method=method, limits=limits, group_sizes=(group_size,) if group_size else target.group_sizes)
