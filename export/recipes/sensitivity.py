"""Quantizes one group of matrices and leaves the rest in float, to measure the group's sensitivity (see mixed_bits.py).

In an export the calibrated recipes quantize a layer for the outputs of the quantized layers before it and correct
their error. Here the layers before it are in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Layer, Linear
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.quantization.awq import input_scales
from edgekit.export.quantization.gptq import factor_hessian, gptq, regularization
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.weighted import weighted_lsq
from edgekit.export.recipes.activation_stats import SHARED_INPUTS, CachedLayer
from edgekit.export.recipes.calibrated_head import awq_head, gptq_head
from edgekit.export.recipes.recipe import CALIBRATED, Recipe

__all__ = ["GroupQuantizer"]

FloatArray = npt.NDArray[np.float32]


class GroupQuantizer:
    """Quantizes matrices to the recipe's default bits and returns them dequantized.

    Args:
        recipe: The recipe.
        runner: The model's.
        tensors: The model's weights.
        ids: The text, `[windows, tokens]`; used only by the calibrated recipes.
    """

    def __init__(self, recipe: Recipe, runner: LayerRunner, tensors: Tensors, ids: npt.NDArray[np.int64]) -> None:
        self._recipe = recipe
        self._runner = runner
        self._tensors = tensors
        self._hidden = runner.embed(tensors, ids) if recipe.method in CALIBRATED else None

    def layer(self, layer: Layer, tensors: CachedLayer) -> Iterator[tuple[tuple[str, ...], dict[str, FloatArray]]]:
        """Quantize the matrices of a layer, group by group; layers must come in order.

        Yields:
            For each group of `SHARED_INPUTS`, its parts, and the dequantized matrices by part.
        """
        linears: dict[str, Linear] = {part: getattr(layer, part) for parts in SHARED_INPUTS.values() for part in parts}
        inputs: dict[str, FloatArray] = {}
        if self._hidden is not None:
            self._hidden, inputs = self._runner.run_with_inputs(layer, tensors, self._hidden)
        # With shared KV heads (GQA), AWQ cannot fold o's scales into v.
        unscaled = {"o"} if self._runner.decoder.num_kv_heads != self._runner.decoder.num_heads else set()
        for site, parts in SHARED_INPUTS.items():
            weights = {part: tensors.matrices[part] for part in parts}
            grid = self._grid(linears[parts[0]])
            if self._hidden is None:
                yield parts, {part: self._data_free(weight, linears[part]) for part, weight in weights.items()}
                continue
            x = inputs.pop(site)
            x = x.reshape(-1, x.shape[-1])
            if self._recipe.method == "gptq":
                yield parts, _gptq(weights, x, grid)
            else:
                yield parts, _awq(weights, x, grid, scaled=site not in unscaled)

    def embedding(self, rows: FloatArray) -> FloatArray:
        """Quantize rows of the embedding."""
        return self._data_free(rows, self._runner.decoder.embedding)

    def head(self) -> Callable[[FloatArray], FloatArray]:
        """Return a function that quantizes rows of the output head; call it after the last layer."""
        decoder = self._runner.decoder
        if decoder.tied or self._hidden is None:
            linear = decoder.embedding if decoder.tied else decoder.head
            return lambda rows: self._data_free(rows, linear)
        grid = self._grid(decoder.head)
        if self._recipe.method == "awq":
            found = awq_head(self._runner, self._tensors, self._hidden, decoder.head, grid)
        else:
            damping = regularization(decoder.hidden_size, self._hidden[..., 0].size).damping
            found = gptq_head(
                self._runner,
                self._tensors,
                self._hidden,
                self._hidden,
                grid.group_size,
                damping=damping,
                correction=0.0,
            )
        return lambda rows: found.fit(rows, grid).dequantize() / found.scales

    def _grid(self, linear: Linear) -> Grid:
        return self._recipe.grid(linear, self._recipe.limits.bits[0])

    def _data_free(self, weight: FloatArray, linear: Linear) -> FloatArray:
        return self._recipe.fit(np.ascontiguousarray(weight), self._grid(linear)).dequantize()


def _gptq(weights: dict[str, FloatArray], x: FloatArray, grid: Grid) -> dict[str, FloatArray]:
    tokens, width = x.shape
    damping = regularization(width, tokens).damping
    factored = factor_hessian(x.T @ x / np.float32(tokens), grid.group_size, damping=damping)
    return {part: gptq(weight, grid, factored).dequantize() for part, weight in weights.items()}


def _awq(weights: dict[str, FloatArray], x: FloatArray, grid: Grid, *, scaled: bool) -> dict[str, FloatArray]:
    def fit(weight: FloatArray, importance: FloatArray) -> GroupedTensor:
        return weighted_lsq(weight, grid, importance)

    magnitudes, squares = np.abs(x).mean(axis=0), np.square(x).mean(axis=0)
    scales = input_scales(list(weights.values()), magnitudes, squares, fit) if scaled else np.ones_like(magnitudes)
    importance: FloatArray = np.divide(squares, np.square(scales), dtype=np.float32)
    return {part: fit(weight * scales, importance).dequantize() / scales for part, weight in weights.items()}
