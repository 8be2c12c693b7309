"""Mixed bits: gives 8 bits to the most sensitive matrices, within a size limit.

The sensitivity of a matrix is the KL divergence from the float model when only this matrix is in 4 bits, quantized by
the export's own recipe. All variants of the model go through the layers together, so each layer is read once, and a
variant costs only the layers after its change. q, k and v form one group, and so do gate and up, because runners
compute each group as one matrix.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.forward.kl import Divergence
from edgekit.export.progress import Report
from edgekit.export.quantization.allocate import allocate
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipes.activation_stats import SHARED_INPUTS, CachedLayer
from edgekit.export.recipes.recipe import Recipe
from edgekit.export.recipes.sensitivity import GroupQuantizer
from edgekit.export.writers.sizes import Rows, predicted_sizes, size_exceeded

__all__ = ["fit_to_size", "measure_sensitivities"]

FloatArray = npt.NDArray[np.float32]

# Windows for the measurement, and tokens of each. All variants keep their hidden states in memory; with four variants
# per layer these are smaller than a layer's matrices in float32.
_WINDOWS, _TOKENS = 2, 64
# Tokens for the calibrated recipes.
_CALIBRATION_TOKENS = 2048
# Reserved for headers and padding: a fraction of the size, and bytes per matrix.
_MARGIN, _PADDING = 0.001, 2048
# Rows that determine the kind of offsets of a matrix.
_SAMPLE = 8


def fit_to_size(
    recipe: Recipe,
    decoder: Decoder,
    tensors: Tensors,
    ids: npt.NDArray[np.int64],
    *,
    size: int,
    artifact_format: str,
    report: Report,
) -> Recipe:
    """Return the recipe with 8 bits for the most sensitive matrices, so that the artifact's weights fit a size.

    Args:
        recipe: The recipe; bits that were chosen already are kept.
        decoder: The model.
        tensors: The model's weights.
        ids: A text, `[windows, tokens]`. Sensitivities are measured on the first tokens of its last two windows;
            calibrated recipes use the other windows, if there are any.
        size: Size limit in bytes.
        artifact_format: The format to write: a dialect, or `mlx`.
        report: Receives progress.

    Raises:
        ConfigError: The model is larger than `size` even with 4 bits everywhere.
    """
    groups = _groups(recipe, decoder)
    predict = _SizePredictor(decoder, tensors, artifact_format)
    min_bytes = predict(recipe)
    budget = int(size * (1 - _MARGIN)) - _PADDING * (2 + 7 * len(decoder.layers)) - min_bytes
    if budget < 0:
        raise size_exceeded(min_bytes, size)
    costs = [predict(_with_8_bits(recipe, group)) - min_bytes for group in groups]
    gains = measure_sensitivities(recipe, decoder, tensors, ids, report)
    for group, chosen in zip(groups, allocate(costs, gains, budget), strict=True):
        recipe = _with_8_bits(recipe, group) if chosen else recipe
    return recipe


def _with_8_bits(recipe: Recipe, group: list[Linear]) -> Recipe:
    return replace(recipe, chosen_bits={**recipe.chosen_bits, **{linear.stored.name: 8 for linear in group}})


class _SizePredictor:
    """Predicts an artifact's size under a recipe, from a few rows of each matrix, quantized once per number of bits."""

    def __init__(self, decoder: Decoder, tensors: Tensors, artifact_format: str) -> None:
        self._decoder = decoder
        self._tensors = tensors
        self._format = artifact_format
        self._rows: dict[tuple[str, int], Rows] = {}

    def __call__(self, recipe: Recipe) -> int:
        return predicted_sizes(self._decoder, self._format, lambda linear: self._sample(recipe, linear)).stored

    def _sample(self, recipe: Recipe, linear: Linear) -> Rows:
        key = (linear.weight, recipe.bits(linear))
        if key not in self._rows:
            rows = self._tensors.matrix(linear, 0, min(_SAMPLE, linear.out_features))
            self._rows[key] = rows if key[1] == 16 else lsq(np.ascontiguousarray(rows), recipe.grid(linear, key[1]))
        return self._rows[key]


def measure_sensitivities(
    recipe: Recipe, decoder: Decoder, tensors: Tensors, ids: npt.NDArray[np.int64], report: Report
) -> list[float]:
    """Measure the sensitivity of each group of matrices to 4 bits: the mean KL divergence from the float model in nats.

    Returns:
        For each group, in execution order: the embedding, the groups of each layer, the output head. Groups whose
        bits are chosen already are left out.
    """
    runner = LayerRunner(decoder)
    measured, calibration = _split(ids)
    quantizer = GroupQuantizer(recipe, runner, tensors, calibration)
    variants = _Variants(runner.embed(tensors, measured), 1 + len(_groups(recipe, decoder)))
    if decoder.embedding.name not in recipe.chosen_bits:
        used, inverse = np.unique(measured, return_inverse=True)
        table = quantizer.embedding(runner.embed(tensors, used[None])[0])
        variants.add(table[inverse.reshape(measured.shape)])
    for layer in decoder.layers:
        report("measure sensitivity to 4 bits", layer.index, len(decoder.layers))
        original = CachedLayer(tensors, layer)
        new_variants: list[FloatArray] = []
        for parts, quantized in quantizer.layer(layer, original):
            if not any(getattr(layer, part).stored.name in recipe.chosen_bits for part in parts):
                changed = CachedLayer(tensors, layer, {**original.matrices, **quantized})
                new_variants.append(runner.run(layer, changed, variants.original))
        runner.run(layer, original, variants.all, out=variants.all)
        for hidden in new_variants:
            variants.add(hidden)
    if not decoder.tied and decoder.head.name not in recipe.chosen_bits:
        variants.add(variants.original)
    return _divergences(runner, quantizer, tensors, variants, head=_head_variant(recipe, decoder))


def _split(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the tokens to measure on, and those for calibration: other windows if the text has more."""
    measured = ids[-_WINDOWS:, :_TOKENS]
    rest = ids[:-_WINDOWS] if len(ids) > _WINDOWS else ids
    return measured, rest[: max(1, _CALIBRATION_TOKENS // ids.shape[1])]


class _Variants:
    """Hidden states of the float model and its variants in one array, so that all go through a layer at once.

    Args:
        hidden: Those of the float model, float32 `[windows, tokens, hidden]`.
        capacity: Maximum number of models: the variants and the float model.
    """

    def __init__(self, hidden: FloatArray, capacity: int) -> None:
        self._windows = len(hidden)
        self._hidden = np.empty((capacity * self._windows, *hidden.shape[1:]), np.float32)
        self._count = 0
        self.add(hidden)

    def add(self, hidden: FloatArray) -> None:
        """Add a variant."""
        self._hidden[self._count * self._windows : (self._count + 1) * self._windows] = hidden
        self._count += 1

    @property
    def all(self) -> FloatArray:
        """The hidden states of all models so far, `[models * windows, tokens, hidden]`, writable."""
        return self._hidden[: self._count * self._windows]

    @property
    def original(self) -> FloatArray:
        """The hidden states of the float model."""
        return self._hidden[: self._windows]

    def rows(self) -> FloatArray:
        """The hidden states of all models so far, `[models, windows * tokens, hidden]`."""
        return self.all.reshape(self._count, -1, self._hidden.shape[-1])


def _head_variant(recipe: Recipe, decoder: Decoder) -> int | None:
    """Return the variant whose output head is quantized: the embedding's if the two are tied, else the last."""
    linear = decoder.embedding if decoder.tied else decoder.head
    groups = _groups(recipe, decoder)
    return groups.index([linear]) if [linear] in groups else None


def _divergences(
    runner: LayerRunner, quantizer: GroupQuantizer, tensors: Tensors, variants: _Variants, *, head: int | None
) -> list[float]:
    reference, *finals = (runner.final(tensors, rows) for rows in variants.rows())
    all_rows = slice(0, len(reference))
    divergences = [Divergence(np.zeros(len(reference), np.int64)) for _ in finals]
    quantize_head = None if head is None else quantizer.head()
    for start, weight in runner.head_blocks(tensors):
        expected = reference @ weight.T
        for index, (final, divergence) in enumerate(zip(finals, divergences, strict=True)):
            own = quantize_head(weight) if quantize_head is not None and index == head else weight
            divergence.add(all_rows, start, expected, final @ own.T)
    return [float(divergence.kl().mean()) for divergence in divergences]


def _groups(recipe: Recipe, decoder: Decoder) -> list[list[Linear]]:
    """The groups of matrices whose bits may be chosen, in the order of `measure_sensitivities`."""
    groups = [[decoder.embedding]]
    groups += [[getattr(layer, part) for part in parts] for layer in decoder.layers for parts in SHARED_INPUTS.values()]
    groups += [] if decoder.tied else [[decoder.head]]
    return [group for group in groups if not any(linear.stored.name in recipe.chosen_bits for linear in group)]
