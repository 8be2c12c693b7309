"""The `Weights` of the calibrated recipes (GPTQ, AWQ): quantizes a checkpoint layer by layer, calibrated on a text.

When the writer reads the first tensor of a layer, the text's hidden states in the quantized model go through the layer
in floating point, its matrices are quantized according to their inputs, and the hidden states advance through the
quantized layer. So each layer sees the error of the ones before it, and with GPTQ corrects it. The output head is
quantized in the same way; the embedding, and a head tied to it, are quantized without data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.forward import CheckpointTensors, LayerRunner
from edgekit.export.quantization.awq import ScaledLayer, awq
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.gptq import FactoredHessian, factor_hessian, gptq, regularization
from edgekit.export.quantization.grid import Grid, GroupedTensor, as_floats
from edgekit.export.quantization.weighted import weighted_lsq
from edgekit.export.recipes.activation_stats import (
    SHARED_INPUTS,
    CachedLayer,
    Moments,
    Stream,
    gather_input_stats,
    gather_moments,
)
from edgekit.export.recipes.calibrated_head import awq_head, gptq_head
from edgekit.export.recipes.recipe import QuantPlan, Recipe
from edgekit.export.recipes.streaming import CheckpointWeights

__all__ = ["CalibratedWeights"]

FloatArray = npt.NDArray[np.float32]


class CalibratedWeights:
    """Quantizes a layer when one of its tensors is read, and keeps each tensor until it has been. A context manager.

    Layers are quantized in order; reading a later one first quantizes those before it, which stay in memory.

    Attributes:
        order: Empty: the order of the layers is the fastest.

    Args:
        checkpoint: The model.
        decoder: Its description.
        recipe: `gptq` or `awq`.
        ids: The calibration text, `[windows, tokens]`.
    """

    order: Sequence[Linear] = ()

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, recipe: Recipe, ids: npt.NDArray[np.int64]) -> None:
        self._uncalibrated = CheckpointWeights(checkpoint, recipe)
        self._tensors = CheckpointTensors(checkpoint)
        self._recipe = recipe
        self._decoder = decoder
        self._ids = ids
        self._runner = LayerRunner(decoder)
        self._layer_of: dict[str, Layer] = {}
        for layer in decoder.layers:
            for linear in layer.linears():
                names = (linear.name, linear.bias_name, linear.stored.name, linear.stored.bias_name)
                self._layer_of |= dict.fromkeys(names, layer)
            self._layer_of |= {layer.input_norm: layer, layer.mlp_norm: layer}
        self._next_layer = 0
        self._ready: dict[str, GroupedTensor | FloatArray] = {}
        self._vectors: dict[str, FloatArray] = {}
        self._hidden: FloatArray | None = None
        self._float_hidden: FloatArray | None = None
        self._head_plan: QuantPlan | None = None

    def __enter__(self) -> CalibratedWeights:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uncalibrated.__exit__(kind, error, trace)

    def fraction_read(self) -> float:
        """Always 1: a layer is read several times, and this is bound by computation rather than by the disk."""
        return 1.0

    @property
    def used(self) -> Counter[str]:
        """Number of matrices by treatment, for the manifest."""
        return self._uncalibrated.used

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32 `[n]`."""
        if self._recipe.method == "awq":
            if name in self._layer_of:
                self._advance(self._layer_of[name])
            elif name == self._decoder.final_norm:
                self._head()
        return self._vectors[name] if name in self._vectors else self._uncalibrated.vector(name)

    def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
        """The weight of a linear layer or of the embedding, `[out, in]`, quantized by the recipe."""
        if linear.name not in self._layer_of:
            tensor = self._uncalibrated.matrix(linear, self._head() if linear.name == self._decoder.head.name else None)
            if linear.name == self._decoder.embedding.name and self._hidden is None:
                self._hidden = self._embed(tensor)
            return tensor
        layer = self._layer_of[linear.name]
        self._advance(layer)
        if linear.name in self._ready:
            return self._ready.pop(linear.name)
        # A matrix that the checkpoint stores fused, read as one.
        return _concatenate([self._ready.pop(part.name) for part in layer.linears() if part.stored.name == linear.name])

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """See `Weights.table`."""
        if linear.name not in self._layer_of and self._recipe.keeps_float(linear):
            return self._uncalibrated.table(linear)
        tensor = self.matrix(linear)
        return tensor if isinstance(tensor, GroupedTensor) else FloatRows.of(tensor)

    def _head(self) -> QuantPlan | None:
        """Return how to quantize the output head; None if it is tied, or not quantized."""
        head, bits = self._decoder.head, self._recipe.bits(self._decoder.head)
        if self._decoder.tied or bits == 16:
            return None
        if self._head_plan is None:
            self._advance(self._decoder.layers[-1])
            assert self._hidden is not None  # noqa: S101  there is a layer
            grid = self._recipe.grid(head, bits)
            if self._recipe.method == "awq":
                found = awq_head(self._runner, self._tensors, self._hidden, head, grid)
                norm, offset = self._tensors.norm(self._decoder.final_norm), np.float32(self._decoder.norm_offset)
                self._vectors[self._decoder.final_norm] = (norm + offset) / found.scales - offset
            else:
                assert self._float_hidden is not None  # noqa: S101  GPTQ runs both models
                strength = regularization(head.in_features, self._ids.size)
                found = gptq_head(
                    self._runner,
                    self._tensors,
                    self._hidden,
                    self._float_hidden,
                    grid.group_size,
                    damping=strength.damping,
                    correction=strength.correction,
                )
            self._head_plan = QuantPlan(found.fit, grid, self._treatment(grid))
        return self._head_plan

    def _treatment(self, grid: Grid) -> str:
        return f"{self._recipe.method} {grid.bits}-bit, group {grid.group_size}"

    def _embed(self, table: GroupedTensor | FloatArray) -> FloatArray:
        """Embed the text with the quantized embedding."""
        used, inverse = np.unique(self._ids, return_inverse=True)
        if isinstance(table, GroupedTensor):
            table = GroupedTensor(table.codes[used], table.scales[used], table.offsets[used], table.bits).dequantize()
        else:
            table = table[used]
        hidden = table[inverse.reshape(self._ids.shape)]
        scale = self._decoder.embedding_scale
        return hidden if scale is None else hidden * np.float32(scale)

    def _advance(self, last: Layer) -> None:
        """Quantize all layers up to and including `last`."""
        while self._next_layer <= last.index:
            self._quantize(self._decoder.layers[self._next_layer])
            self._next_layer += 1

    def _quantize(self, layer: Layer) -> None:
        is_gptq = self._recipe.method == "gptq"
        if self._float_hidden is None and (is_gptq or self._hidden is None):
            self._float_hidden = self._runner.embed(self._tensors, self._ids)
        if self._hidden is None:
            self._hidden = np.array(self._float_hidden)
        tensors = CachedLayer(self._tensors, layer)
        quantized, original = Stream(self._hidden, tensors), None
        if is_gptq and self._float_hidden is not None:
            original = Stream(self._float_hidden, CachedLayer(self._tensors, layer, tensors.matrices))
        if original is not None:
            # In execution order: the input of o depends on the quantized q, k and v.
            for site in SHARED_INPUTS:
                moments = gather_moments(self._runner, layer, site, quantized, original)
                self._quantize_gptq(layer, site, tensors, moments)
        else:
            self._quantize_awq(layer, quantized)
        self._runner.run(layer, tensors, self._hidden, out=self._hidden)
        if original is not None:
            self._runner.run(layer, original.tensors, original.hidden, out=original.hidden)

    def _quantize_gptq(self, layer: Layer, site: str, tensors: CachedLayer, moments: Moments) -> None:
        """Quantize the matrices that read the same inputs by GPTQ."""
        factors: dict[int, FactoredHessian] = {}
        strength = regularization(len(moments.hessian), self._ids.size)

        def fit(part: str, weight: FloatArray, grid: Grid) -> GroupedTensor:
            if grid.group_size not in factors:
                factors[grid.group_size] = factor_hessian(moments.hessian, grid.group_size, damping=strength.damping)
            drift = moments.drifts.pop(part) * np.float32(strength.correction)
            return gptq(weight, grid, factors[grid.group_size], drift=drift)

        self._quantize_parts(layer, SHARED_INPUTS[site], tensors, fit)

    def _quantize_parts(
        self,
        layer: Layer,
        parts: Iterable[str],
        tensors: CachedLayer,
        fit: Callable[[str, FloatArray, Grid], GroupedTensor],
    ) -> None:
        """Quantize some matrices of a layer."""
        for part in parts:
            linear: Linear = getattr(layer, part)
            weight, bits = tensors.matrices[part], self._recipe.bits(linear)
            tensor: GroupedTensor | FloatArray = weight
            treatment = "floating point"
            if bits != 16:
                grid = self._recipe.grid(linear, bits)
                treatment = self._treatment(grid)
                tensor = fit(part, weight, grid)
            self._ready[linear.name] = tensor
            self.used[treatment] += 1
            tensors.matrices[part] = as_floats(tensor)

    def _quantize_awq(self, layer: Layer, stream: Stream) -> None:
        """Apply AWQ's scales to a layer's matrices, biases and norms, and quantize it."""
        decoder, tensors = self._decoder, stream.tensors
        norms = {"attention": layer.input_norm, "mlp": layer.mlp_norm}
        offset = np.float32(decoder.norm_offset)
        linears: dict[str, Linear] = {part: getattr(layer, part) for part in tensors.matrices}
        before = ScaledLayer(
            matrices=tensors.matrices,
            norms={site: tensors.norm(name) + offset for site, name in norms.items()},
            biases={part: tensors.bias(linear) for part, linear in linears.items() if linear.bias},
        )
        inputs = gather_input_stats(self._runner, layer, stream)
        # The scales are optimized for 4 bits, which need them; matrices that get 8 bits lose nothing by it.
        grids = {
            linear.in_features: self._recipe.grid(linear, self._recipe.limits.bits[0]) for linear in linears.values()
        }
        after = awq(
            before,
            {site: stats.magnitudes for site, stats in inputs.items()},
            {site: stats.squares for site, stats in inputs.items()},
            lambda weight, importance: weighted_lsq(weight, grids[weight.shape[1]], importance),
            shared_kv_heads=decoder.num_kv_heads != decoder.num_heads,
        )
        for site, name in norms.items():
            self._vectors[name] = tensors.vectors[name] = after.norms[site] - offset
        for part, bias in after.biases.items():
            self._vectors[linears[part].bias_name] = tensors.vectors[linears[part].bias_name] = bias
        for linear in dict.fromkeys(linear.stored for linear in linears.values() if linear.part_of and linear.bias):
            parts = [part for part in linears.values() if part.stored == linear]
            self._vectors[linear.bias_name] = np.concatenate([self._vectors[part.bias_name] for part in parts])
        tensors.matrices.update(after.matrices)
        squares = {
            part: inputs[site].squares / np.square(after.scales.get(site, np.float32(1)))
            for site, parts_at_site in SHARED_INPUTS.items()
            for part in parts_at_site
        }
        self._quantize_parts(
            layer, squares, tensors, lambda part, weight, grid: weighted_lsq(weight, grid, squares[part])
        )


def _concatenate(parts: list[GroupedTensor | FloatArray]) -> GroupedTensor | FloatArray:
    """Concatenate the parts of a fused matrix; bits are chosen per stored matrix, so all parts have the same."""
    grouped = [part for part in parts if isinstance(part, GroupedTensor)]
    if not grouped:
        return np.concatenate([as_floats(part) for part in parts])
    return GroupedTensor(
        codes=np.concatenate([part.codes for part in grouped]),
        scales=np.concatenate([part.scales for part in grouped]),
        offsets=np.concatenate([part.offsets for part in grouped]),
        bits=grouped[0].bits,
    )
