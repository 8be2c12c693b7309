"""AWQ: inputs that are large get finer weights (Lin et al. 2023, arXiv:2306.00978).

Columns of a matrix are multiplied by `s = mean|x|**alpha` before it is put on a grid, and what gives the inputs is
divided by it: mathematically nothing changes, but the columns that matter round more finely. Alpha is searched for
the smallest error of the outputs; alpha 0 changes nothing, so the result is never worse than the plain fit. What gives
the inputs: the norms of q, k, v and of gate, up; the rows of up for down; the rows of v for o, where no two heads share
them. The paper's search for clipping is left to the fit: `weighted_lsq` clips where that lowers the weighted error.

The error is taken as if inputs were uncorrelated, each weight's by the mean square of its input. The paper multiplies
by samples of the inputs instead; that finds scales of the same worth (mean KL 0.071 and 0.072 on stories15M, 0.195 and
0.197 on SmolLM2-135M) in seven times the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["ScaledLayer", "awq", "input_scales"]

FloatArray = npt.NDArray[np.float32]

Fit = Callable[[FloatArray, FloatArray], GroupedTensor]
"""`(weight [out, in], importance [in]) -> on the grid`; the importance is the mean square of the inputs."""

# The paper's twentieths find nothing better.
_ALPHAS = tuple(step / 10 for step in range(1, 10))
# Rows of a matrix that the search looks at: an error over so many rows tells which alpha is best.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class ScaledLayer:
    """The numbers of one transformer layer that AWQ may scale.

    Attributes:
        matrices: Float32 `[out, in]` by `q`, `k`, `v`, `o`, `gate`, `up` and `down`.
        norms: What the normed values are multiplied by, float32 `[hidden]`, by `attention` and `mlp`. A model that
            stores a norm as `1 + w` gives `1 + w`.
        biases: Float32 `[out]` by the names of the matrices, those that exist.
        scales: What the inputs have been divided by, float32 `[in]`, by `attention`, `o`, `mlp` and `down`.
    """

    matrices: Mapping[str, FloatArray]
    norms: Mapping[str, FloatArray]
    biases: Mapping[str, FloatArray]
    scales: Mapping[str, FloatArray] = field(default_factory=dict)


def awq(
    layer: ScaledLayer,
    magnitudes: Mapping[str, FloatArray],
    squares: Mapping[str, FloatArray],
    fit: Fit,
    *,
    heads_are_shared: bool,
) -> ScaledLayer:
    """Scale a layer so that its matrices lose less on a grid; its outputs stay the same but for rounding.

    Args:
        layer: The layer's numbers.
        magnitudes: Mean magnitudes of what the matrices read, float32 `[in]`, by `attention`, `o`, `mlp` and `down`.
        squares: Mean squares of the same.
        fit: How the matrices will be put on the grid.
        heads_are_shared: Several query heads read one value head, so that o's columns cannot be folded into v.

    Returns:
        The scaled layer, in floating point.
    """
    matrices, norms, biases = dict(layer.matrices), dict(layer.norms), dict(layer.biases)
    found: dict[str, FloatArray] = {}
    for site, readers in (("attention", ("q", "k", "v")), ("mlp", ("gate", "up"))):
        weights = [matrices[name] for name in readers]
        found[site] = scales = input_scales(weights, magnitudes[site], squares[site], fit)
        norms[site] = norms[site] / scales
        for name in readers:
            matrices[name] = matrices[name] * scales
    for site, giver in (("down", "up"),) if heads_are_shared else (("o", "v"), ("down", "up")):
        found[site] = scales = input_scales([matrices[site]], magnitudes[site], squares[site], fit)
        matrices[site] = matrices[site] * scales
        matrices[giver] = matrices[giver] / scales[:, None]
        if giver in biases:
            biases[giver] = biases[giver] / scales
    return ScaledLayer(matrices, norms, biases, found)


def input_scales(weights: Sequence[FloatArray], magnitudes: FloatArray, squares: FloatArray, fit: Fit) -> FloatArray:
    """Search for the scales of the inputs that some matrices share.

    Args:
        weights: Float32 `[out, in]`, each.
        magnitudes: Mean magnitude of each input, float32 `[in]`.
        squares: Mean square of each input, float32 `[in]`.
        fit: How they will be put on the grid.

    Returns:
        Float32 `[in]`, positive; ones where no scaling helps.
    """
    ones = np.ones(magnitudes.shape, dtype=np.float32)
    if not magnitudes.any():
        return ones
    # An input that was never active must not get an infinite reciprocal.
    magnitudes = np.maximum(magnitudes, 1e-4 * magnitudes.max())
    fewer = [weight[:: -(-len(weight) // _ROWS)] for weight in weights]
    best, least = ones, _error(fewer, squares, ones, fit)
    for alpha in _ALPHAS:
        scales = magnitudes.astype(np.float64) ** alpha
        scales = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
        error = _error(fewer, squares, scales, fit)
        if error < least:
            best, least = scales, error
    if best is ones or all(len(some) == len(weight) for some, weight in zip(fewer, weights, strict=True)):
        return best
    # The rows that were left out have the last word.
    return best if _error(weights, squares, best, fit) < _error(weights, squares, ones, fit) else ones


def _error(weights: Sequence[FloatArray], squares: FloatArray, scales: FloatArray, fit: Fit) -> float:
    """Mean squared error of an output, summed over all outputs."""
    importance: FloatArray = np.divide(squares, np.square(scales), dtype=np.float32)
    total = 0.0
    for weight in weights:
        change = fit(weight * scales, importance).dequantize()
        change /= scales
        change -= weight
        total += float((np.square(change, out=change) @ squares).sum(dtype=np.float64))
    return total
