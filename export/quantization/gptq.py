"""GPTQ: each weight's rounding error is made good by the weights after it (Frantar et al. 2022, arXiv:2210.17323).

The outputs' squared error is `tr(E H Eᵀ)` with `E = W - Q` and `H` the inputs' second moments. With `H = V Vᵀ`, V
upper triangular, it is the sum over columns j of `V_jj² (w'_j - q_j)²`, where `w'_j = w_j + sum_{i<j} E_i V_ij / V_jj`:
so column j is rounded from `w'_j`, and what the columns before it did wrong is fed back. This form, LDLQ, gives GPTQ's
own numbers (Chee et al. 2023, arXiv:2307.13304, theorem 6) without an inverse of H. A group's scales are chosen when
its first column is reached, from the updated weights, by least squares that `V_jj²` weighs: it is what a squared
error in column j costs. It does not know where H comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.weighted import fit_group

__all__ = ["Caution", "Factored", "caution", "factor_moments", "gptq"]

FloatArray = npt.NDArray[np.float32]

# Columns whose feedback is gathered by one matrix product, and the width of a panel of the factorisation.
_PANEL = 256
# With d inputs and n tokens, damping grows by so much of d / n, and drift is made good less by so much of it: what a
# short text says of correlations is partly chance (docs/decisions/0014 has what was measured).
_DAMPING, _SCARCE_DAMPING = 0.01, 0.1
_DRIFT, _SCARCE_DRIFT = 0.5, 2.0
# Where rounding has left the moments without a factor, ten times as much is added, up to this.
_DAMPING_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Factored:
    """Second moments of some inputs, factored: `H[order][:, order] + damping = U diag(cost) Uᵀ`.

    Attributes:
        upper: U, float32 `[in, in]`: unit upper triangular, only the part above the diagonal is set.
        cost: Float32 `[in]`: what a squared error at an input costs once those after it have made good what they can.
        order: The inputs in the order they are rounded in.
        group_size: Inputs that share a scale; they are consecutive in `order`.
    """

    upper: FloatArray
    cost: FloatArray
    order: npt.NDArray[np.intp]
    group_size: int


@dataclass(frozen=True, slots=True)
class Caution:
    """How far a text is trusted.

    Attributes:
        damping: For `factor_moments`.
        correction: How much of the drift is to be made good, 0 to 1.
    """

    damping: float
    correction: float


def caution(inputs: int, tokens: int) -> Caution:
    """Say how far to trust second moments of so many inputs that are the mean over so many tokens."""
    scarcity = inputs / tokens
    return Caution(_DAMPING + _SCARCE_DAMPING * scarcity, _DRIFT * max(0.0, 1 - _SCARCE_DRIFT * scarcity))


def factor_moments(hessian: FloatArray, group_size: int, *, damping: float = 0.01) -> Factored:
    """Factor the second moments of inputs; it serves all matrices that read them.

    Args:
        hessian: Float32 `[in, in]`, symmetric: the mean of `x xᵀ`. A second array of this size is made.
        group_size: Consecutive inputs that share a scale.
        damping: Added to the diagonal, as a part of its mean.

    Raises:
        ExportError: The inputs do not divide into groups, or the moments are not finite or not positive definite.
    """
    width = len(hessian)
    if width % group_size:
        raise ExportError(
            f"{width} input features do not divide into groups of {group_size}",
            hint="choose a smaller group size, or leave this tensor in floating point",
        )
    mean = float(hessian.diagonal().mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise ExportError("second moments of the inputs are not finite")
    order = _order(hessian.diagonal(), group_size)
    try:
        upper, cost = _factor(hessian, order, np.float32(damping * mean if mean > 0 else 1))
    except np.linalg.LinAlgError as error:
        if damping >= _DAMPING_LIMIT:
            raise ExportError("the second moments of the inputs are not positive definite") from error
        return factor_moments(hessian, group_size, damping=max(damping, 1e-4) * 10)
    return Factored(upper, cost, order, group_size)


def gptq(weight: FloatArray, grid: Grid, inputs: Factored, *, drift: FloatArray | None = None) -> GroupedTensor:
    """Quantize a matrix so that its outputs, rather than its weights, change least.

    Memory beside the arguments: the weights twice (with `drift` three times) and the codes twice.

    Args:
        weight: Float32 `[out, in]`.
        grid: What the target's format can hold.
        inputs: Of `factor_moments`, of the inputs as the quantized model gives them.
        drift: Float32 `[out, in]`, the mean of `(y - W x) xᵀ`, where y are the outputs of the float model and x the
            inputs of the quantized one. What the layers before did wrong is then made good too, as far as a linear
            map can (GPTAQ, Li et al. 2025, arXiv:2504.02692).

    Raises:
        ExportError: The shapes do not fit each other or the groups, or a weight is not finite or too large.
    """
    out, width = weight.shape
    if (width, grid.group_size) != (len(inputs.cost), inputs.group_size):
        raise ExportError(
            f"{width} inputs in groups of {grid.group_size}, and second moments of {len(inputs.cost)} "
            f"in groups of {inputs.group_size}"
        )
    from edgekit.export.quantization.kernels import round_in_turn

    order, upper, size = inputs.order, inputs.upper, grid.group_size
    # Rows are inputs: what is done to a column of the matrix is done to consecutive numbers.
    error = np.ascontiguousarray(weight.T[order], dtype=np.float32)
    if drift is not None:
        error += _solve(inputs, drift.T[order])
    codes = np.empty((width, out), dtype=np.uint8)
    scales = np.empty((out, width // size), dtype=np.float32)
    offsets = np.empty_like(scales)
    panel = max(_PANEL // size, 1) * size
    for first in range(0, width, panel):
        last = min(first + panel, width)
        updated = error[first:last] + upper[:first, first:last].T @ error[:first]
        for start in range(first, last, size):
            span = slice(start, start + size)
            block = updated[start - first : start - first + size]
            block += upper[first:start, span].T @ error[first:start]
            chosen = fit_group(block, inputs.cost[span], grid)
            group = order[start] // size
            scales[:, group], offsets[:, group] = chosen
            round_in_turn(block, error[span], codes[span], np.ascontiguousarray(upper[span, span]), *chosen, grid.bits)
    restored = np.empty((out, width), dtype=np.uint8)
    restored[:, order] = codes.T
    return GroupedTensor(codes=restored, scales=scales, offsets=offsets, bits=grid.bits)


def _order(diagonal: FloatArray, group_size: int) -> npt.NDArray[np.intp]:
    """The inputs with the largest second moments first, but those of a group together.

    Whole groups are ordered, and the inputs within each: the format keeps consecutive inputs under one scale, and a
    group's scale is chosen when its first input comes up.
    """
    grouped = diagonal.reshape(-1, group_size)
    within = np.argsort(-grouped, axis=1, kind="stable")
    groups = np.argsort(-grouped.sum(axis=1), kind="stable")
    return (within + np.arange(len(grouped))[:, None] * group_size)[groups].reshape(-1)


def _factor(
    hessian: FloatArray, order: npt.NDArray[np.intp], added: np.float32
) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    width = len(order)
    factor = np.empty((width, width), dtype=np.float32)
    cost = np.empty(width, dtype=np.float32)
    # From the last panel to the first, as the triangle is an upper one: only one panel is ever updated.
    for last in range(width, 0, -_PANEL):
        first = max(0, last - _PANEL)
        panel = hessian[order[:last, None], order[first:last]]
        panel[np.arange(first, last), np.arange(last - first)] += added
        if last < width:
            panel -= factor[:last, last:] @ (factor[first:last, last:] * cost[last:]).T
        square = panel[first:].astype(np.float64)
        root = np.linalg.cholesky(square[::-1, ::-1])[::-1, ::-1]
        diagonal = root.diagonal()
        cost[first:last] = np.square(diagonal)
        factor[first:last, first:last] = root / diagonal
        # V_above = H_above V_panel⁻ᵀ, and U = V / diagonal.
        factor[:first, first:last] = panel[:first] @ (np.linalg.inv(root).T / diagonal).astype(np.float32)
    return factor, cost


def _solve(inputs: Factored, right: FloatArray) -> FloatArray:
    """Solve `U diag(cost) Uᵀ x = right` for x `[in, out]`, panel by panel; `right` is used up."""
    width = len(right)
    panels = [slice(max(0, last - _PANEL), last) for last in range(width, 0, -_PANEL)]
    inverses = {}
    for span in panels:
        square = np.triu(inputs.upper[span, span], 1) + np.eye(span.stop - span.start)
        inverses[span.start] = inverse = np.linalg.inv(square).astype(np.float32)
        right[span] = inverse @ (right[span] - inputs.upper[span, span.stop :] @ right[span.stop :])
    right /= inputs.cost[:, None]
    for span in reversed(panels):
        right[span] = inverses[span.start].T @ (right[span] - inputs.upper[: span.start, span].T @ right[: span.start])
    return right
