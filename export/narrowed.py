"""What a recipe makes of some matrices of a model that is otherwise as it was: the trial behind mixed bits.

The calibrated recipes quantize a layer for what the quantized layers before it give, and make good what those lost. In
a trial there are none: the text comes through the layers as they were. It chooses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Layer, Linear
from edgekit.export.calibrated_head import awq_head, gptq_head
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.layer_moments import READERS, HeldLayer
from edgekit.export.quantization.awq import input_scales
from edgekit.export.quantization.gptq import caution, factor_moments, gptq
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.weighted import weighted_lsq
from edgekit.export.recipe import CALIBRATED, Recipe

__all__ = ["Trial"]

FloatArray = npt.NDArray[np.float32]


class Trial:
    """Puts matrices on the recipe's narrowest grid and gives back what the codes stand for.

    Args:
        recipe: Says how.
        runner: Of the model.
        tensors: Its numbers.
        ids: The text, `[windows, tokens]`; only the calibrated recipes look at it.
    """

    def __init__(self, recipe: Recipe, runner: LayerRunner, tensors: Tensors, ids: npt.NDArray[np.int64]) -> None:
        self._recipe = recipe
        self._runner = runner
        self._tensors = tensors
        self._hidden = runner.embed(tensors, ids) if recipe.method in CALIBRATED else None

    def layer(self, layer: Layer, held: HeldLayer) -> Iterator[tuple[tuple[str, ...], dict[str, FloatArray]]]:
        """Quantize the matrices of a layer, each as if it were alone; layers come in order.

        Yields:
            For each of `READERS`, the parts that read the same inputs, and what they become by part.
        """
        linears: dict[str, Linear] = {part: getattr(layer, part) for readers in READERS.values() for part in readers}
        inputs: dict[str, FloatArray] = {}
        if self._hidden is not None:
            self._hidden, inputs = self._runner.run_with_inputs(layer, held, self._hidden)
        # AWQ has nothing to fold o's scales into where heads share their values.
        shared = {"o"} if self._runner.decoder.num_kv_heads != self._runner.decoder.num_heads else set()
        for site, readers in READERS.items():
            weights = {part: held.matrices[part] for part in readers}
            grid = self._grid(linears[readers[0]])
            if self._hidden is None:
                yield readers, {part: self._plain(weight, linears[part]) for part, weight in weights.items()}
                continue
            x = inputs.pop(site)
            x = x.reshape(-1, x.shape[-1])
            if self._recipe.method == "gptq":
                yield readers, _gptq(weights, x, grid)
            else:
                yield readers, _awq(weights, x, grid, scaled=site not in shared)

    def embedding(self, rows: FloatArray) -> FloatArray:
        """Quantize some rows of the embedding."""
        return self._plain(rows, self._runner.decoder.embedding)

    def head(self) -> Callable[[FloatArray], FloatArray]:
        """Return what quantizes some rows of the output head, after the last layer."""
        decoder = self._runner.decoder
        if decoder.tied or self._hidden is None:
            linear = decoder.embedding if decoder.tied else decoder.head
            return lambda rows: self._plain(rows, linear)
        grid = self._grid(decoder.head)
        if self._recipe.method == "awq":
            found = awq_head(self._runner, self._tensors, self._hidden, decoder.head, grid)
        else:
            damping = caution(decoder.hidden_size, self._hidden[..., 0].size).damping
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
        return self._recipe.grid(linear, self._recipe.holds.bits[0])

    def _plain(self, weight: FloatArray, linear: Linear) -> FloatArray:
        return self._recipe.fit(np.ascontiguousarray(weight), self._grid(linear)).dequantize()


def _gptq(weights: dict[str, FloatArray], x: FloatArray, grid: Grid) -> dict[str, FloatArray]:
    tokens, width = x.shape
    factored = factor_moments(x.T @ x / np.float32(tokens), grid.group_size, damping=caution(width, tokens).damping)
    return {part: gptq(weight, grid, factored).dequantize() for part, weight in weights.items()}


def _awq(weights: dict[str, FloatArray], x: FloatArray, grid: Grid, *, scaled: bool) -> dict[str, FloatArray]:
    def fit(weight: FloatArray, importance: FloatArray) -> GroupedTensor:
        return weighted_lsq(weight, grid, importance)

    magnitudes, squares = np.abs(x).mean(axis=0), np.square(x).mean(axis=0)
    scales = input_scales(list(weights.values()), magnitudes, squares, fit) if scaled else np.ones_like(magnitudes)
    importance: FloatArray = np.divide(squares, np.square(scales), dtype=np.float32)
    return {part: fit(weight * scales, importance).dequantize() / scales for part, weight in weights.items()}
