"""GPTQ: each weight's rounding error is compensated by the weights after it (Frantar et al. 2022, arXiv:2210.17323).

The outputs' squared error is `tr(E H Eᵀ)` with `E = W - Q` and the Hessian `H`, the inputs' second moments. With
`H = V Vᵀ`, V upper triangular, it is the sum over columns j of `V_jj² (w'_j - q_j)²`, where
`w'_j = w_j + sum_{i<j} E_i V_ij / V_jj`: column j is rounded from `w'_j`, which feeds back the errors of the columns
before it. This form, LDLQ, gives the same result as GPTQ (Chee et al. 2023, arXiv:2307.13304, theorem 6) without
inverting H. A group's scales are chosen when its first column is reached, from the updated weights, by least squares
weighted with `V_jj²`, the cost of a squared error in column j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.weighted import fit_group

__all__ = ["FactoredHessian", "Regularization", "factor_hessian", "gptq", "regularization"]

FloatArray = npt.NDArray[np.float32]

# Columns whose feedback is accumulated by one matrix product; also the panel width of the factorization.
_PANEL = 256
# With d inputs and n tokens, damping grows and drift correction shrinks in proportion to d / n: correlations measured
# on a short text are partly chance (measurements: docs/decisions/0014).
_DAMPING, _SCARCE_DAMPING = 0.01, 0.1
_DRIFT, _SCARCE_DRIFT = 0.5, 2.0
# If the factorization fails through rounding, damping is multiplied by ten, up to this.
_DAMPING_LIMIT = 10


@dataclass(frozen=True, slots=True)
class FactoredHessian:
    """A factored Hessian: `H[order][:, order] + damping = U diag(cost) Uᵀ`.

    Attributes:
        upper: U, float32 `[in, in]`: unit upper triangular, only the part above the diagonal is set.
        cost: Float32 `[in]`: the cost of a squared error at an input after compensation by the inputs after it.
        order: The order in which the inputs are rounded.
        group_size: Inputs that share a scale; they are consecutive in `order`.
    """

    upper: FloatArray
    cost: FloatArray
    order: npt.NDArray[np.intp]
    group_size: int


@dataclass(frozen=True, slots=True)
class Regularization:
    """How strongly to regularize moments measured on a short text.

    Attributes:
        damping: For `factor_hessian`.
        correction: The fraction of the drift to correct, 0 to 1.
    """

    damping: float
    correction: float


def regularization(inputs: int, tokens: int) -> Regularization:
    """Return the regularization for moments of `inputs` features averaged over `tokens` tokens."""
    scarcity = inputs / tokens
    return Regularization(_DAMPING + _SCARCE_DAMPING * scarcity, _DRIFT * max(0.0, 1 - _SCARCE_DRIFT * scarcity))


def factor_hessian(hessian: FloatArray, group_size: int, *, damping: float = 0.01) -> FactoredHessian:
    """Factor the Hessian of the inputs, for all matrices that read them.

    Args:
        hessian: Float32 `[in, in]`, symmetric: the mean of `x xᵀ`. A second array of this size is allocated.
        group_size: Consecutive inputs that share a scale.
        damping: Added to the diagonal, as a fraction of its mean.

    Raises:
        ExportError: The inputs do not divide into groups, or the Hessian is not finite or not positive definite.
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
        return factor_hessian(hessian, group_size, damping=max(damping, 1e-4) * 10)
    return FactoredHessian(upper, cost, order, group_size)


def gptq(weight: FloatArray, grid: Grid, hessian: FactoredHessian, *, drift: FloatArray | None = None) -> GroupedTensor:
    """Quantize a matrix to minimize the error of its outputs rather than of its weights.

    Memory beyond the arguments: the weights twice (three times with `drift`) and the codes twice.

    Args:
        weight: Float32 `[out, in]`.
        grid: The values that the target's format can represent.
        hessian: The factored Hessian of the inputs in the quantized model.
        drift: Float32 `[out, in]`, the mean of `(y - W x) xᵀ`, where y are the outputs of the float model and x the
            inputs of the quantized one. Corrects the error of the earlier layers as far as a linear map can (GPTAQ,
            Li et al. 2025, arXiv:2504.02692).

    Raises:
        ExportError: Shapes or groups do not match, or a weight is not finite or too large.
    """
    out, width = weight.shape
    if (width, grid.group_size) != (len(hessian.cost), hessian.group_size):
        raise ExportError(
            f"{width} inputs in groups of {grid.group_size} do not match second moments of {len(hessian.cost)} inputs "
            f"in groups of {hessian.group_size}"
        )
    from edgekit.export.quantization.kernels import round_with_feedback

    order, upper, size = hessian.order, hessian.upper, grid.group_size
    # Transposed: rows are inputs, so operations on a column of the matrix touch consecutive memory.
    error = np.ascontiguousarray(weight.T[order], dtype=np.float32)
    if drift is not None:
        error += _solve(hessian, drift.T[order])
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
            fitted = fit_group(block, hessian.cost[span], grid)
            group = order[start] // size
            scales[:, group], offsets[:, group] = fitted
            factor = np.ascontiguousarray(upper[span, span])
            round_with_feedback(block, error[span], codes[span], factor, *fitted, grid.bits)
    restored = np.empty((out, width), dtype=np.uint8)
    restored[:, order] = codes.T
    return GroupedTensor(codes=restored, scales=scales, offsets=offsets, bits=grid.bits)


def _order(diagonal: FloatArray, group_size: int) -> npt.NDArray[np.intp]:
    """GPTQ's act-order (largest second moments first), with the inputs of a group kept together.

    Groups are ordered, and the inputs within each: in the format consecutive inputs share one scale, which is chosen
    when the group's first input is reached.
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
    # The factor is upper triangular: going from the last panel to the first, only one panel is updated at a time.
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


def _solve(hessian: FactoredHessian, right: FloatArray) -> FloatArray:
    """Solve `U diag(cost) Uᵀ x = right` for x `[in, out]`, panel by panel and in place."""
    width, upper = len(right), hessian.upper
    panels = [slice(max(0, last - _PANEL), last) for last in range(width, 0, -_PANEL)]
    inverses = {}
    for span in panels:
        square = np.triu(upper[span, span], 1) + np.eye(span.stop - span.start)
        inverses[span.start] = inverse = np.linalg.inv(square).astype(np.float32)
        right[span] = inverse @ (right[span] - upper[span, span.stop :] @ right[span.stop :])
    right /= hessian.cost[:, None]
    for span in reversed(panels):
        right[span] = inverses[span.start].T @ (right[span] - upper[: span.start, span].T @ right[: span.start])
    return right
