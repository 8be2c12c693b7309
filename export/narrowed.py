"""What a recipe makes of some matrices of a model that is otherwise as it was: the trial behind mixed bits.

The calibrated recipes quantize a layer for what the quantized layers before it give, and make good what those lost. In
a trial there are none: the text comes through the layers as they were. It chooses nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Layer, Linear
from edgekit.export.calibrated_head import awq_head, gptq_head
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.layer_moments import READERS, HeldLayer, Inputs, Stream, gather, read_inputs
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

    def layer(self, layer: Layer, held: HeldLayer) -> dict[str, FloatArray]:
        """Quantize the matrices of a layer, each as if it were alone; layers come in order.

        Returns:
            By part.
        """
        linears: dict[str, Linear] = {part: getattr(layer, part) for readers in READERS.values() for part in readers}
        grids = {part: self._grid(linear) for part, linear in linears.items()}
        if self._hidden is None:
            return {part: self._plain(held.matrices[part], linear) for part, linear in linears.items()}
        stream = Stream(self._hidden, held)
        by = self._by_gptq if self._recipe.method == "gptq" else self._by_awq
        made = by(layer, stream, grids)
        self._runner.run(layer, held, self._hidden, out=self._hidden)
        return made

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

    def _by_gptq(self, layer: Layer, stream: Stream, grids: dict[str, Grid]) -> dict[str, FloatArray]:
        made: dict[str, FloatArray] = {}
        for site, readers in READERS.items():
            hessian = gather(self._runner, layer, site, stream, None).hessian
            damping = caution(len(hessian), stream.hidden[..., 0].size).damping
            factored = factor_moments(hessian, grids[readers[0]].group_size, damping=damping)
            for part in readers:
                made[part] = gptq(stream.held.matrices[part], grids[part], factored).dequantize()
        return made

    def _by_awq(self, layer: Layer, stream: Stream, grids: dict[str, Grid]) -> dict[str, FloatArray]:
        inputs = read_inputs(self._runner, layer, stream)
        decoder = self._runner.decoder
        shared = {"o"} if decoder.num_kv_heads != decoder.num_heads else set()
        made: dict[str, FloatArray] = {}
        for site, readers in READERS.items():
            weights = {part: stream.held.matrices[part] for part in readers}
            made |= _awq(weights, inputs[site], grids[readers[0]], scaled=site not in shared)
        return made

    def _grid(self, linear: Linear) -> Grid:
        return self._recipe.grid(linear, self._recipe.holds.bits[0])

    def _plain(self, weight: FloatArray, linear: Linear) -> FloatArray:
        return self._recipe.fit(np.ascontiguousarray(weight), self._grid(linear)).dequantize()


def _awq(weights: dict[str, FloatArray], inputs: Inputs, grid: Grid, *, scaled: bool) -> dict[str, FloatArray]:
    def fit(weight: FloatArray, importance: FloatArray) -> GroupedTensor:
        return weighted_lsq(weight, grid, importance)

    scales = np.ones_like(inputs.magnitudes)
    if scaled:
        scales = input_scales(list(weights.values()), inputs.magnitudes, inputs.squares, fit)
    importance: FloatArray = np.divide(inputs.squares, np.square(scales), dtype=np.float32)
    return {part: fit(weight * scales, importance).dequantize() / scales for part, weight in weights.items()}
