"""A checkpoint's numbers put on the target's grid with the help of a text: the `Weights` of the calibrated recipes.

When a writer asks for the first tensor of a layer, the text's hidden states, as the quantized layers before it left
them, go through the layer in floating point; its matrices are quantized by what they read; and the hidden states
advance through the quantized layer, so that each layer sees, and with GPTQ makes good, what the ones before it lost.
The output head follows in the same way; the embedding, and a head that is the embedding, are quantized without data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.calibrated_head import awq_head, gptq_head
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.float_rows import FloatRows
from edgekit.export.forward import CheckpointTensors, LayerRunner
from edgekit.export.layer_moments import READERS, HeldLayer, Moments, Stream, gather, read_inputs
from edgekit.export.quantization.awq import ScaledLayer, awq
from edgekit.export.quantization.gptq import Factored, caution, factor_moments, gptq
from edgekit.export.quantization.grid import Grid, GroupedTensor, as_floats
from edgekit.export.quantization.weighted import weighted_lsq
from edgekit.export.recipe import Fitting, Recipe
from edgekit.export.weights import CheckpointWeights

__all__ = ["CalibratedWeights"]

FloatArray = npt.NDArray[np.float32]


class CalibratedWeights:
    """Quantizes a layer when one of its tensors is asked for, and keeps it until all have been. A context manager.

    Layers are quantized in order; asking for a later one quantizes those before it, and keeps them in memory.

    Attributes:
        order: Empty: layers come one after the other.

    Args:
        checkpoint: The model.
        decoder: Its description.
        recipe: `gptq` or `awq`.
        ids: The text, `[windows, tokens]`.
    """

    order: Sequence[Linear] = ()

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, recipe: Recipe, ids: npt.NDArray[np.int64]) -> None:
        self._plain = CheckpointWeights(checkpoint, recipe)
        self._tensors = CheckpointTensors(checkpoint)
        self._recipe = recipe
        self._decoder = decoder
        self._ids = ids
        self._runner = LayerRunner(decoder)
        self._layer_of: dict[str, Layer] = {}
        self._linears: dict[str, Linear] = {}
        for layer in decoder.layers:
            for linear in layer.linears():
                names = (linear.name, linear.bias_name, linear.stored.name, linear.stored.bias_name)
                self._layer_of |= dict.fromkeys(names, layer)
            self._layer_of |= {layer.input_norm: layer, layer.mlp_norm: layer}
        self._done = 0
        self._ready: dict[str, GroupedTensor | FloatArray] = {}
        self._vectors: dict[str, FloatArray] = {}
        self._hidden: FloatArray | None = None
        self._float_hidden: FloatArray | None = None
        self._head_fitting: Fitting | None = None

    def __enter__(self) -> CalibratedWeights:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plain.__exit__(kind, error, trace)

    def fraction_read(self) -> float:
        """A layer is read several times, and the disk is not what this waits for."""
        return 1.0

    @property
    def used(self) -> Counter[str]:
        """How many matrices each treatment was applied to, for the manifest."""
        return self._plain.used

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32 `[n]`."""
        if self._recipe.method == "awq":
            if name in self._layer_of:
                self._advance(self._layer_of[name])
            elif name == self._decoder.final_norm:
                self._head()
        return self._vectors[name] if name in self._vectors else self._plain.vector(name)

    def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
        """The weight of a linear layer or of the embedding, `[out, in]`, as the recipe wants it."""
        if linear.name not in self._layer_of:
            tensor = self._plain.matrix(linear, self._head() if linear.name == self._decoder.head.name else None)
            if linear.name == self._decoder.embedding.name and self._hidden is None:
                self._hidden = self._embed(tensor)
            return tensor
        layer = self._layer_of[linear.name]
        self._advance(layer)
        if linear.name in self._ready:
            return self._ready.pop(linear.name)
        # A matrix that the checkpoint stores joined and the writer wants so.
        return _joined([self._ready.pop(part.name) for part in layer.linears() if part.stored.name == linear.name])

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """See `Weights.table`."""
        if linear.name not in self._layer_of and self._recipe.leaves_floats(linear):
            return self._plain.table(linear)
        tensor = self.matrix(linear)
        return tensor if isinstance(tensor, GroupedTensor) else FloatRows.of(tensor)

    def _head(self) -> Fitting | None:
        """How the output head is put on its grid; None where it is left to the recipe."""
        head, bits = self._decoder.head, self._recipe.bits(self._decoder.head)
        if self._decoder.tied or bits == 16:
            return None
        if self._head_fitting is None:
            self._advance(self._decoder.layers[-1])
            assert self._hidden is not None  # noqa: S101  there is a layer
            grid = self._recipe.grid(head, bits)
            if self._recipe.method == "awq":
                found = awq_head(self._runner, self._tensors, self._hidden, head, grid)
                norm, offset = self._tensors.norm(self._decoder.final_norm), np.float32(self._decoder.norm_offset)
                self._vectors[self._decoder.final_norm] = (norm + offset) / found.scales - offset
            else:
                assert self._float_hidden is not None  # noqa: S101  GPTQ follows both
                trust = caution(head.in_features, self._ids.size)
                found = gptq_head(
                    self._runner,
                    self._tensors,
                    self._hidden,
                    self._float_hidden,
                    grid.group_size,
                    damping=trust.damping,
                    correction=trust.correction,
                )
            self._head_fitting = Fitting(found.fit, grid, self._treatment(grid))
        return self._head_fitting

    def _treatment(self, grid: Grid) -> str:
        return f"{self._recipe.method} {grid.bits}-bit, group {grid.group_size}"

    def _embed(self, table: GroupedTensor | FloatArray) -> FloatArray:
        """Look the text up in the embedding as the recipe left it."""
        used, places = np.unique(self._ids, return_inverse=True)
        if isinstance(table, GroupedTensor):
            table = GroupedTensor(table.codes[used], table.scales[used], table.offsets[used], table.bits).dequantize()
        else:
            table = table[used]
        hidden = table[places.reshape(self._ids.shape)]
        scale = self._decoder.embedding_scale
        return hidden if scale is None else hidden * np.float32(scale)

    def _advance(self, upto: Layer) -> None:
        while self._done <= upto.index:
            self._quantize(self._decoder.layers[self._done])
            self._done += 1

    def _quantize(self, layer: Layer) -> None:
        follow = self._recipe.method == "gptq"
        if self._float_hidden is None and (follow or self._hidden is None):
            self._float_hidden = self._runner.embed(self._tensors, self._ids)
        if self._hidden is None:
            self._hidden = np.array(self._float_hidden)
        held = HeldLayer(self._tensors, layer)
        quantized, original = Stream(self._hidden, held), None
        if follow and self._float_hidden is not None:
            original = Stream(self._float_hidden, HeldLayer(self._tensors, layer, held.matrices))
        if original is not None:
            # In the order of use: what o reads depends on q, k and v as they have become.
            for site in READERS:
                self._make_good(layer, site, held, gather(self._runner, layer, site, quantized, original))
        else:
            self._scale(layer, quantized)
        self._runner.run(layer, held, self._hidden, out=self._hidden)
        if original is not None:
            self._runner.run(layer, original.held, original.hidden, out=original.hidden)

    def _make_good(self, layer: Layer, site: str, held: HeldLayer, moments: Moments) -> None:
        """Quantize the matrices that read the same inputs by GPTQ."""
        factors: dict[int, Factored] = {}
        trust = caution(len(moments.hessian), self._ids.size)

        def fit(part: str, weight: FloatArray, grid: Grid) -> GroupedTensor:
            if grid.group_size not in factors:
                factors[grid.group_size] = factor_moments(moments.hessian, grid.group_size, damping=trust.damping)
            drift = moments.drifts.pop(part) * np.float32(trust.correction)
            return gptq(weight, grid, factors[grid.group_size], drift=drift)

        self._fit(layer, READERS[site], held, fit)

    def _fit(
        self, layer: Layer, parts: Iterable[str], held: HeldLayer, fit: Callable[[str, FloatArray, Grid], GroupedTensor]
    ) -> None:
        """Put some matrices of a layer on their grids."""
        for part in parts:
            linear: Linear = getattr(layer, part)
            weight, bits = held.matrices[part], self._recipe.bits(linear)
            tensor: GroupedTensor | FloatArray = weight
            treatment = "floating point"
            if bits != 16:
                grid = self._recipe.grid(linear, bits)
                treatment = self._treatment(grid)
                tensor = fit(part, weight, grid)
            self._ready[linear.name] = tensor
            self.used[treatment] += 1
            held.matrices[part] = as_floats(tensor)

    def _scale(self, layer: Layer, stream: Stream) -> None:
        """Apply AWQ's scales to a layer and to its norms, and quantize it."""
        decoder, held = self._decoder, stream.held
        norms = {"attention": layer.input_norm, "mlp": layer.mlp_norm}
        offset = np.float32(decoder.norm_offset)
        linears: dict[str, Linear] = {part: getattr(layer, part) for part in held.matrices}
        before = ScaledLayer(
            matrices=held.matrices,
            norms={site: held.norm(name) + offset for site, name in norms.items()},
            biases={part: held.bias(linear) for part, linear in linears.items() if linear.bias},
        )
        inputs = read_inputs(self._runner, layer, stream)
        # The search is for 4 bits, which need it; a matrix that gets 8 loses nothing by it.
        grids = {
            linear.in_features: self._recipe.grid(linear, self._recipe.holds.bits[0]) for linear in linears.values()
        }
        after = awq(
            before,
            {site: read.magnitudes for site, read in inputs.items()},
            {site: read.squares for site, read in inputs.items()},
            lambda weight, importance: weighted_lsq(weight, grids[weight.shape[1]], importance),
            heads_are_shared=decoder.num_kv_heads != decoder.num_heads,
        )
        for site, name in norms.items():
            self._vectors[name] = held.vectors[name] = after.norms[site] - offset
        for part, bias in after.biases.items():
            self._vectors[linears[part].bias_name] = held.vectors[linears[part].bias_name] = bias
        for linear in dict.fromkeys(linear.stored for linear in linears.values() if linear.part_of and linear.bias):
            parts = [one for one in linears.values() if one.stored == linear]
            self._vectors[linear.bias_name] = np.concatenate([self._vectors[one.bias_name] for one in parts])
        held.matrices.update(after.matrices)
        squares = {
            part: inputs[site].squares / np.square(after.scales.get(site, np.float32(1)))
            for site, readers in READERS.items()
            for part in readers
        }
        self._fit(layer, squares, held, lambda part, weight, grid: weighted_lsq(weight, grid, squares[part]))


def _joined(parts: list[GroupedTensor | FloatArray]) -> GroupedTensor | FloatArray:
    """Stack matrices that the checkpoint stores as one; their bits are the same, for bits go by what is stored."""
    grouped = [part for part in parts if isinstance(part, GroupedTensor)]
    if not grouped:
        return np.concatenate([as_floats(part) for part in parts])
    return GroupedTensor(
        codes=np.concatenate([part.codes for part in grouped]),
        scales=np.concatenate([part.scales for part in grouped]),
        offsets=np.concatenate([part.offsets for part in grouped]),
        bits=grouped[0].bits,
    )
