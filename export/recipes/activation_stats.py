"""Gathers activation statistics of one layer: second moments and drift for GPTQ, input magnitudes for AWQ.

Two streams of hidden states run side by side: one through the float model, one through the model whose earlier layers
are quantized. A matrix is quantized for its inputs in the quantized model and its outputs in the float model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Layer, Linear
from edgekit.export.forward import LayerRunner, Tensors

__all__ = ["SHARED_INPUTS", "CachedLayer", "InputStats", "Moments", "Stream", "gather_input_stats", "gather_moments"]

FloatArray = npt.NDArray[np.float32]

SHARED_INPUTS = {"attention": ("q", "k", "v"), "o": ("o",), "mlp": ("gate", "up"), "down": ("down",)}
"""The matrices that read the same inputs, by the name of the inputs (the site)."""

# Tokens that both streams process at a time.
_TOKENS = 1024
# Rows of second moments at a time.
_ROWS = 1024


class CachedLayer:
    """`Tensors` of one layer for repeated use: its matrices are read once and kept, and tensors can be replaced."""

    def __init__(self, tensors: Tensors, layer: Layer, matrices: Mapping[str, FloatArray] | None = None) -> None:
        """Read the layer's matrices, or take the given ones, by part name."""
        self._tensors = tensors
        parts = ("q", "k", "v", "o", "gate", "up", "down")
        linears = dict(zip(parts, layer.linears(), strict=True))
        self.matrices = dict(matrices or {part: tensors.matrix(linear) for part, linear in linears.items()})
        self._names = {linear.name: part for part, linear in linears.items()}
        self.vectors: dict[str, FloatArray] = {}

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`."""
        return self.vectors[name] if name in self.vectors else self._tensors.norm(name)

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        name = linear.bias_name
        return self.vectors[name] if name in self.vectors else self._tensors.bias(linear)

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        return self.matrices[self._names[linear.name]][start:stop]


@dataclass(slots=True)
class Stream:
    """The hidden states of a text before a layer, float32 `[windows, tokens, hidden]`, and the layer's weights."""

    hidden: FloatArray
    tensors: CachedLayer

    def site_input(self, runner: LayerRunner, layer: Layer, site: str, span: slice) -> FloatArray:
        """The inputs at a site for some windows, `[windows * tokens, in]`."""
        values = runner.group_input(layer, self.tensors, self.hidden[span], site)
        return values.reshape(-1, values.shape[-1])

    def projections(self, site: str) -> dict[str, FloatArray]:
        """The matrices at a site if together they have fewer outputs than inputs, else none."""
        matrices = {part: self.tensors.matrices[part] for part in SHARED_INPUTS[site]}
        rows = sum(len(weight) for weight in matrices.values())
        return matrices if rows < next(iter(matrices.values())).shape[1] else {}


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the inputs that some matrices share.

    Attributes:
        hessian: Mean of `x xᵀ`, float32 `[in, in]`, where x are the inputs in the quantized model.
        drifts: Mean of `W (x' - x) xᵀ` by part, float32 `[out, in]`, where x' are the inputs in the float model.
    """

    hessian: FloatArray
    drifts: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class InputStats:
    """The mean size of each input of some matrices.

    Attributes:
        magnitudes: Mean magnitudes, float32 `[in]`.
        squares: Mean squares, float32 `[in]`.
    """

    magnitudes: FloatArray
    squares: FloatArray


def gather_moments(runner: LayerRunner, layer: Layer, site: str, quantized: Stream, original: Stream) -> Moments:
    """Run the text through a layer up to a site, and gather the moments of the inputs there.

    Args:
        runner: The model's.
        layer: One of its layers.
        site: `attention`, `o`, `mlp` or `down`.
        quantized: The hidden states before the layer in the quantized model, and the layer's weights, some of them
            quantized already.
        original: The same in the float model.
    """
    windows, tokens = quantized.hidden.shape[:2]
    step = max(1, _TOKENS // tokens)
    total = np.float32(windows * tokens)
    width = quantized.tensors.matrices[SHARED_INPUTS[site][0]].shape[1]
    hessian = np.zeros((width, width), np.float32)
    sums: dict[str, FloatArray] = {}
    for start in range(0, windows, step):
        x = quantized.site_input(runner, layer, site, slice(start, start + step))
        _add_squares(hessian, x)
        change = original.site_input(runner, layer, site, slice(start, start + step)) - x
        for part, weight in original.projections(site).items():
            # Projected first: `[out, in]` is smaller than `[in, in]`.
            _add(sums, part, (change @ weight.T).T @ x)
        if not original.projections(site):
            _add(sums, "change", change.T @ x)
    _mirror(hessian)
    hessian /= total
    drifts = {
        part: (sums[part] if part in sums else original.tensors.matrices[part] @ sums["change"]) / total
        for part in SHARED_INPUTS[site]
    }
    return Moments(hessian=hessian, drifts=drifts)


def gather_input_stats(runner: LayerRunner, layer: Layer, stream: Stream) -> dict[str, InputStats]:
    """Run the text through a layer once, and measure the inputs of all its matrices.

    Returns:
        The statistics by site.
    """
    magnitudes: dict[str, FloatArray] = {}
    squares: dict[str, FloatArray] = {}

    def observe(inputs: Mapping[str, FloatArray]) -> None:
        for site, x in inputs.items():
            _add(magnitudes, site, np.abs(x).sum(axis=(0, 1)))
            _add(squares, site, np.square(x).sum(axis=(0, 1)))

    runner.run(layer, stream.tensors, stream.hidden, observe=observe)
    tokens = np.float32(stream.hidden.shape[0] * stream.hidden.shape[1])
    return {site: InputStats(magnitudes[site] / tokens, squares[site] / tokens) for site in SHARED_INPUTS}


def _add_squares(hessian: FloatArray, x: FloatArray) -> None:
    """Add `xᵀ x` on and above the diagonal, a few rows at a time: the full product would be as large as the sum."""
    for start in range(0, len(hessian), _ROWS):
        hessian[start : start + _ROWS, start:] += x[:, start : start + _ROWS].T @ x[:, start:]


def _mirror(hessian: FloatArray) -> None:
    """Copy the part above the diagonal to the part below."""
    for start in range(0, len(hessian), _ROWS):
        stop = start + _ROWS
        hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def _add(sums: dict[str, FloatArray], name: str, values: FloatArray) -> None:
    if name in sums:
        sums[name] += values
    else:
        sums[name] = values
