"""A recipe: which grid each weight matrix is put on, and how.

It says *what* to do with a tensor; the functions of `edgekit.export.quantization` do it. It knows no file format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConfigError, ExportError, nearest
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.exact import fits
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset, as_floats
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.repack import repack
from edgekit.export.quantization.rtn import rtn
from edgekit.target import Target

__all__ = ["BITS", "CALIBRATED", "METHODS", "Fitting", "Holds", "Recipe", "recipe_for"]

FloatArray = npt.NDArray[np.float32]
Fit = Callable[[FloatArray, Grid], GroupedTensor]

METHODS = {
    "auto": "a quantized checkpoint's own codes where the target can hold them, else 8-bit; lsq for floating point",
    "lsq": "4-bit, least-squares scale and offset with clipping; needs no calibration data",
    "rtn": "4-bit, round to nearest between the smallest and the largest weight of a group",
    "gptq": "4-bit, calibrated on a text: each weight makes good the rounding of those before it",
    "awq": "4-bit, calibrated on a text: weights whose inputs are large are rounded more finely",
    "none": "floating point, not quantized",
}
CALIBRATED = ("gptq", "awq")
"""Those of `METHODS` that need a text; the embedding, and a head tied to it, are quantized by `lsq` under them."""
BITS = (4, 8, 16)
"""Bits that a tensor can be given; 16 leaves it in the artifact's floating point."""
_FITS: dict[str, Fit] = {"lsq": lsq, "rtn": rtn}


@dataclass(frozen=True, slots=True)
class Holds:
    """What an artifact format can hold, and what it is fast with.

    Attributes:
        widest: The least restricted offset it can express.
        fitted: The offset to fit 4-bit codes with.
        scale_dtype: How it stores scales and offsets.
        widened: The offset to fit 8-bit codes with.
        bits: Bits per code that it takes, the default first.
        groups: Group sizes that it takes.
        wide_groups: Group sizes for 8-bit codes, the preferred one first.
    """

    widest: Offset
    fitted: Offset
    scale_dtype: type[np.float16 | np.float32]
    widened: Offset = Offset.SYMMETRIC
    bits: tuple[int, ...] = (4, 8)
    groups: tuple[int, ...] = (32, 64, 128)
    wide_groups: tuple[int, ...] = (128, 64, 32)


FORMATS = {
    "mlx": Holds(Offset.FLOAT, Offset.FLOAT, np.float16, widened=Offset.FLOAT),
    # Nothing that a float offset gives was worth its bytes where codes are fitted; 8-bit codes do without any.
    "onnxruntime": Holds(Offset.FLOAT, Offset.ZERO_POINT, np.float32),
    # TensorRT takes symmetric INT4; offsets and 8 bits are built from it, and worth it only to keep what is there.
    "portable": Holds(Offset.FLOAT, Offset.SYMMETRIC, np.float16),
    "native": Holds(Offset.FLOAT, Offset.SYMMETRIC, np.float16),
}


@dataclass(frozen=True, slots=True)
class Fitting:
    """How one matrix is put on a grid; rows may be fitted apart, because no group spans two.

    Attributes:
        fit: The method.
        grid: The grid.
        summary: Both in a few words, for the manifest.
    """

    fit: Fit
    grid: Grid
    summary: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the weight matrices of one model are put on one target's grids.

    Attributes:
        method: A key of `METHODS`.
        holds: What the artifact format can hold.
        groups: Group sizes to use, the preferred one first; the first that divides a matrix's inputs is taken.
        chosen_bits: Bits of single matrices, by the name of what the checkpoint stores; the rest get the default.
    """

    method: str
    holds: Holds
    groups: tuple[int, ...]
    chosen_bits: Mapping[str, int] = field(default_factory=dict)

    def bits(self, linear: Linear) -> int:
        """Bits that a matrix is to be fitted with: 4, 8 or 16."""
        return self.chosen_bits.get(linear.stored.name, self.holds.bits[0])

    def grid(self, linear: Linear, bits: int) -> Grid:
        """Return the grid to fit a matrix on, with 4 or 8 bits.

        Raises:
            ExportError: No group size divides its inputs.
        """
        groups = self.holds.wide_groups if bits == 8 else self.groups
        group = next((size for size in groups if linear.in_features % size == 0), None)
        if group is None:
            raise ExportError(
                f"no group size fits `{linear.name}`: none of {', '.join(map(str, groups))} "
                f"divides its {linear.in_features} inputs",
                hint="try another --group-size, or --recipe none",
            )
        offset = self.holds.widened if bits == 8 else self.holds.fitted
        return Grid(bits, group, offset, self.holds.scale_dtype)

    def with_bits(self, decoder: Decoder, *, head: int | None, embedding: int | None) -> Recipe:
        """Return the recipe with bits for the output head and the embedding as a user chose them.

        Args:
            decoder: The model. Where its head is tied to the embedding, one choice serves both.
            head: 4, 8 or 16; None leaves it to the method.
            embedding: Likewise.

        Raises:
            ConfigError: The two share a tensor and are to differ, or the method is `none`.
        """
        for option, bits in (("--head-bits", head), ("--embedding-bits", embedding)):
            if bits is not None and bits not in BITS:
                raise ConfigError(f"{option} {bits} is not a choice", hint="choose 4, 8 or 16")
        if head is None and embedding is None:
            return self
        if self.method == "none":
            raise ConfigError("--recipe none keeps all tensors in floating point", hint="leave the bits out")
        if decoder.tied and None not in {head, embedding} and head != embedding:
            raise ConfigError(
                "this model's output head is its embedding: both have the same bits",
                hint="give --embedding-bits alone",
            )
        chosen = dict(self.chosen_bits)
        for linear, bits in ((decoder.embedding, embedding or (head if decoder.tied else None)), (decoder.head, head)):
            if bits is not None:
                chosen[linear.name] = bits
        return replace(self, chosen_bits=chosen)

    def check_fit(self) -> None:
        """Make sure that bits may be chosen by what they cost.

        Raises:
            ConfigError: The method chooses them itself.
        """
        if self.method in {"auto", "none"}:
            raise ConfigError(
                f"--fit chooses bits, and so does --recipe {self.method}",
                hint="use --fit with --recipe gptq, awq, lsq or rtn",
            )

    def apply(
        self, linear: Linear, stored: GroupedTensor | FloatArray, encoding: str
    ) -> tuple[GroupedTensor | FloatArray, str]:
        """Put one matrix on the target's grid.

        Args:
            linear: Whose weight it is.
            stored: As the checkpoint holds it, `[out, in]`.
            encoding: The checkpoint's word for how it is stored, `F16` or `Q4_K`.

        Returns:
            The matrix, and what was done to it in a few words for the manifest.
        """
        if self.leaves_floats(linear):
            return as_floats(stored), "floating point"
        kept = self.keep(linear, stored)
        if kept is not None:
            return kept
        fitting = self.fitting(linear, encoding)
        return fitting.fit(as_floats(stored), fitting.grid), fitting.summary

    def leaves_floats(self, linear: Linear) -> bool:
        """Whether a matrix stays in floating point."""
        return self.method == "none" or self.chosen_bits.get(linear.stored.name) == 16

    def fitting(self, linear: Linear, encoding: str) -> Fitting:
        """Return how a matrix is put on a grid that does not hold it already.

        Args:
            linear: Whose weight it is.
            encoding: The checkpoint's word for how it is stored.

        Raises:
            ExportError: No group size divides its inputs.
        """
        # A second 4-bit grid over the first one's points would cost far more than 8 bits cost memory
        # (docs/decisions/0006): what was quantized once is widened, what is float gets 4 bits.
        if self.keeps(linear) and (encoding.startswith(("Q", "IQ")) or encoding in {"GPTQ", "AWQ"}):
            grid = self.grid(linear, 8)
            return Fitting(_naming(linear, rtn), grid, f"8-bit, group {grid.group_size}")
        fit, grid = self.fit, self.grid(linear, self.bits(linear))
        return Fitting(_naming(linear, fit), grid, f"{fit.__name__} {grid.bits}-bit, group {grid.group_size}")

    @property
    def fit(self) -> Fit:
        """The method for floats, where no text helps."""
        return _FITS.get(self.method, lsq)

    def summary(self, used: Counter[str], calibration: Mapping[str, object] | None = None) -> dict[str, object]:
        """Return what the manifest says of the recipe.

        Args:
            used: How many matrices each treatment was applied to.
            calibration: What is to be said of the text, if there was one.
        """
        counts = used.most_common()
        words = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} ({count})" for name, count in counts)
        said: dict[str, object] = {"method": self.method, "summary": words, "matrices": dict(counts)}
        return said if calibration is None else {**said, "calibration": dict(calibration)}

    def keeps(self, linear: Linear) -> bool:
        """Whether a quantized tensor is carried over where the format can hold it."""
        return self.method == "auto" and linear.stored.name not in self.chosen_bits

    def keep(self, linear: Linear, stored: GroupedTensor | FloatArray) -> tuple[GroupedTensor, str] | None:
        """Carry a quantized tensor over with its codes, if the recipe wants it and the format can hold it."""
        if not self.keeps(linear) or not isinstance(stored, GroupedTensor):
            return None
        for grid in self._grids(stored):
            exact = fits(stored, grid)
            if exact is not None:
                return exact, f"exact {grid.bits}-bit, group {grid.group_size}"
        for grid in self._grids(stored):
            kept = repack(stored, grid)
            if kept is not None:
                return kept, f"{grid.bits}-bit codes kept, group {grid.group_size}"
        return None

    def _grids(self, stored: GroupedTensor) -> list[Grid]:
        """The format's grids, nearest to the tensor's own first: same bits before more, same group before smaller."""
        groups = sorted((g for g in self.holds.groups if stored.group_size % g == 0), reverse=True)
        bits = sorted(b for b in self.holds.bits if b >= stored.bits)
        return [Grid(b, g, self.holds.widest, self.holds.scale_dtype) for b in bits for g in groups]


def _naming(linear: Linear, fit: Fit) -> Fit:
    """The method, whose errors name the matrix."""

    def named(weight: FloatArray, grid: Grid) -> GroupedTensor:
        try:
            return fit(weight, grid)
        except ExportError as error:
            raise ExportError(f"`{linear.weight}`: {error.message}", hint=error.hint, code=error.code) from error

    return named


def recipe_for(target: Target, method: str, group_size: int | None) -> Recipe:
    """Return the recipe a user asked for, for a target.

    Args:
        target: The device profile.
        method: A key of `METHODS`.
        group_size: None takes the target's own list.

    Raises:
        ConfigError: There is no such method, or the target's format does not take the group size.
    """
    if method not in METHODS:
        near = nearest(method, METHODS)
        raise ConfigError(
            f"unknown recipe `{method}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"known recipes: {', '.join(METHODS)}",
        )
    holds = FORMATS[target.dialect or target.artifact]
    if group_size is not None and group_size not in holds.groups:
        raise ConfigError(
            f"group size {group_size} is not one that target `{target.name}` takes",
            hint=f"choose one of {', '.join(map(str, holds.groups))}",
        )
    return Recipe(method=method, holds=holds, groups=(group_size,) if group_size else target.group_sizes)
