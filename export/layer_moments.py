"""Gathers what the matrices of one layer read: second moments and drift, or how large each input is.

Two streams of hidden states run side by side: one of the model as it was, one of the model whose earlier layers are
quantized. A matrix is quantized for the inputs that it will meet, and for the outputs that it was to give. It knows no
recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Layer, Linear
from edgekit.export.forward import LayerRunner, Tensors

__all__ = ["READERS", "HeldLayer", "Inputs", "Moments", "Stream", "gather", "read_inputs"]

FloatArray = npt.NDArray[np.float32]

READERS = {"attention": ("q", "k", "v"), "o": ("o",), "mlp": ("gate", "up"), "down": ("down",)}
"""Which matrices read the same inputs, by the name of the inputs."""

# Tokens at a time through both streams.
_TOKENS = 1024
# Rows of second moments at a time.
_ROWS = 1024


class HeldLayer:
    """`Tensors` of one layer that are asked for several times: its matrices are read once and kept."""

    def __init__(self, tensors: Tensors, layer: Layer, matrices: Mapping[str, FloatArray] | None = None) -> None:
        """Read the layer's matrices, or take those given, by part name."""
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
    """The hidden states of a text before a layer, float32 `[windows, tokens, hidden]`, and the layer's numbers."""

    hidden: FloatArray
    held: HeldLayer

    def read_by(self, runner: LayerRunner, layer: Layer, site: str, span: slice) -> FloatArray:
        """What the matrices at a site read of some windows, `[windows * tokens, in]`."""
        read = runner.read_by(layer, self.held, self.hidden[span], site)
        return read.reshape(-1, read.shape[-1])

    def narrow(self, site: str) -> dict[str, FloatArray]:
        """The matrices at a site if they have fewer outputs than inputs, else none."""
        matrices = {part: self.held.matrices[part] for part in READERS[site]}
        rows = sum(len(weight) for weight in matrices.values())
        return matrices if rows < next(iter(matrices.values())).shape[1] else {}


@dataclass(frozen=True, slots=True)
class Moments:
    """What the matrices that share their inputs read.

    Attributes:
        hessian: Mean of `x xᵀ`, float32 `[in, in]`, where x are the inputs in the quantized model.
        drifts: Mean of `W (x' - x) xᵀ` by part, float32 `[out, in]`, where x' are the inputs in the float model.
    """

    hessian: FloatArray
    drifts: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Inputs:
    """How large the inputs of some matrices are.

    Attributes:
        magnitudes: Mean of their magnitudes, float32 `[in]`.
        squares: Mean of their squares.
    """

    magnitudes: FloatArray
    squares: FloatArray


def gather(runner: LayerRunner, layer: Layer, site: str, quantized: Stream, original: Stream) -> Moments:
    """Run the text through a layer as far as some matrices, and gather what they read.

    Args:
        runner: Of the model.
        layer: One of its layers.
        site: `attention`, `o`, `mlp` or `down`.
        quantized: The hidden states before the layer in the quantized model, and the layer's numbers as far as they
            have been quantized.
        original: The same in the float model.
    """
    windows, tokens = quantized.hidden.shape[:2]
    step = max(1, _TOKENS // tokens)
    total = np.float32(windows * tokens)
    width = quantized.held.matrices[READERS[site][0]].shape[1]
    hessian = np.zeros((width, width), np.float32)
    sums: dict[str, FloatArray] = {}
    for start in range(0, windows, step):
        x = quantized.read_by(runner, layer, site, slice(start, start + step))
        _add_squares(hessian, x)
        change = original.read_by(runner, layer, site, slice(start, start + step)) - x
        for part, weight in original.narrow(site).items():
            # Projected first: `[out, in]` is the smaller array.
            _add(sums, part, (change @ weight.T).T @ x)
        if not original.narrow(site):
            _add(sums, "change", change.T @ x)
    _mirror(hessian)
    hessian /= total
    drifts = {
        part: (sums[part] if part in sums else original.held.matrices[part] @ sums["change"]) / total
        for part in READERS[site]
    }
    return Moments(hessian=hessian, drifts=drifts)


def read_inputs(runner: LayerRunner, layer: Layer, stream: Stream) -> dict[str, Inputs]:
    """Run the text through a layer once, and note what all of its matrices read.

    Returns:
        By the name of the inputs.
    """
    magnitudes: dict[str, FloatArray] = {}
    squares: dict[str, FloatArray] = {}

    def observe(inputs: Mapping[str, FloatArray]) -> None:
        for site, x in inputs.items():
            _add(magnitudes, site, np.abs(x).sum(axis=(0, 1)))
            _add(squares, site, np.square(x).sum(axis=(0, 1)))

    runner.run(layer, stream.held, stream.hidden, observe=observe)
    tokens = np.float32(stream.hidden.shape[0] * stream.hidden.shape[1])
    return {site: Inputs(magnitudes[site] / tokens, squares[site] / tokens) for site in READERS}


def _add_squares(hessian: FloatArray, x: FloatArray) -> None:
    """Add `xᵀ x` above the diagonal; some rows at a time, as the product of all is as large as the sum."""
    for start in range(0, len(hessian), _ROWS):
        hessian[start : start + _ROWS, start:] += x[:, start : start + _ROWS].T @ x[:, start:]


def _mirror(hessian: FloatArray) -> None:
    """Write what stands above the diagonal below it too."""
    for start in range(0, len(hessian), _ROWS):
        stop = start + _ROWS
        hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def _add(sums: dict[str, FloatArray], name: str, values: FloatArray) -> None:
    if name in sums:
        sums[name] += values
    else:
        sums[name] = values
