"""Mixed bits: the matrices that matter most get 8 bits, within a size that the user names.

What a matrix matters is measured: the model runs with it alone in 4 bits, by the recipe that the export will use, and
the divergence of its answers from the float model's is the effect. All variants stream through the layers together, so
that each layer is read once, and a variant costs only the layers after it; q, k and v count as one, and so do gate and
up, for runners compute them as one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.artifact_sizes import Rows, predicted_sizes, too_large
from edgekit.export.divergence import Divergence
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.layer_moments import READERS, HeldLayer
from edgekit.export.narrowed import Trial
from edgekit.export.progress import Report
from edgekit.export.quantization.allocate import allocate
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipe import Recipe

__all__ = ["fit_to_size", "measure_effects"]

FloatArray = npt.NDArray[np.float32]

# Windows that the effects are measured on, and tokens of each: all variants keep their hidden states in memory, which
# with four variants to a layer are smaller than a layer's matrices in float32.
_WINDOWS, _TOKENS = 2, 64
# Tokens that the calibrated recipes see in a trial.
_TRIAL = 2048
# Kept back for what is beside the numbers, headers and padding: a part of the whole, and so much for each matrix.
_MARGIN, _PADDING = 0.001, 2048
# Rows that tell which kind of offsets a matrix will have.
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
    """Return the recipe with 8 bits where they help most, such that the artifact's weights fit into a size.

    Args:
        recipe: Bits that it has chosen already stay as they are.
        decoder: The model.
        tensors: Its numbers.
        ids: A text, `[windows, tokens]`. Effects are measured on the beginnings of its last two windows; in the
            trials recipes that are calibrated see some of the others, if there are others.
        size: Bytes.
        artifact_format: What will be written: a dialect, or `mlx`.
        report: Receives progress.

    Raises:
        ConfigError: Even with 4 bits everywhere the model is larger.
    """
    groups = _groups(recipe, decoder)
    predict = _Sizes(decoder, tensors, artifact_format)
    least = predict(recipe)
    room = int(size * (1 - _MARGIN)) - _PADDING * (2 + 7 * len(decoder.layers)) - least
    if room < 0:
        raise too_large(least, size)
    extra = [predict(_widened(recipe, group)) - least for group in groups]
    effects = measure_effects(recipe, decoder, tensors, ids, report)
    for group, wide in zip(groups, allocate(extra, effects, room), strict=True):
        recipe = _widened(recipe, group) if wide else recipe
    return recipe


def _widened(recipe: Recipe, group: list[Linear]) -> Recipe:
    return replace(recipe, chosen_bits={**recipe.chosen_bits, **{linear.stored.name: 8 for linear in group}})


class _Sizes:
    """Predicts an artifact's bytes under a recipe; a few rows of each matrix are fitted once per width of codes."""

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


def measure_effects(
    recipe: Recipe, decoder: Decoder, tensors: Tensors, ids: npt.NDArray[np.int64], report: Report
) -> list[float]:
    """Measure what 4 bits cost each group of matrices: the mean divergence from the float model, in nats.

    Returns:
        For each group, in the order of use: the embedding, the groups of each layer, the output head; those whose
        bits are chosen already are left out.
    """
    runner = LayerRunner(decoder)
    measured, seen = _split(ids)
    trial = Trial(recipe, runner, tensors, seen)
    states = _States(runner.embed(tensors, measured), 1 + len(_groups(recipe, decoder)))
    if decoder.embedding.name not in recipe.chosen_bits:
        used, places = np.unique(measured, return_inverse=True)
        table = trial.embedding(runner.embed(tensors, used[None])[0])
        states.add(table[places.reshape(measured.shape)])
    for layer in decoder.layers:
        report("measure what 4 bits cost", layer.index, len(decoder.layers))
        held = HeldLayer(tensors, layer)
        born: list[FloatArray] = []
        for readers, narrow in trial.layer(layer, held):
            if not any(getattr(layer, part).stored.name in recipe.chosen_bits for part in readers):
                born.append(runner.run(layer, HeldLayer(tensors, layer, {**held.matrices, **narrow}), states.original))
        runner.run(layer, held, states.all, out=states.all)
        for hidden in born:
            states.add(hidden)
    if not decoder.tied and decoder.head.name not in recipe.chosen_bits:
        states.add(states.original)
    return _divergences(runner, trial, tensors, states, head=_which_head(recipe, decoder))


def _split(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The tokens to measure on and those that the recipe may see: others, if the text has more windows."""
    measured = ids[-_WINDOWS:, :_TOKENS]
    rest = ids[:-_WINDOWS] if len(ids) > _WINDOWS else ids
    return measured, rest[: max(1, _TRIAL // ids.shape[1])]


class _States:
    """Hidden states of the float model and of the variants so far, in one array: all go through a layer at once.

    Args:
        hidden: The float model's, float32 `[windows, tokens, hidden]`.
        most: How many variants there will be, and one.
    """

    def __init__(self, hidden: FloatArray, most: int) -> None:
        self._windows = len(hidden)
        self._every = np.empty((most * self._windows, *hidden.shape[1:]), np.float32)
        self._count = 0
        self.add(hidden)

    def add(self, hidden: FloatArray) -> None:
        """Add a variant."""
        self._every[self._count * self._windows : (self._count + 1) * self._windows] = hidden
        self._count += 1

    @property
    def all(self) -> FloatArray:
        """All so far, `[models * windows, tokens, hidden]`; may be written to."""
        return self._every[: self._count * self._windows]

    @property
    def original(self) -> FloatArray:
        """The float model's."""
        return self._every[: self._windows]

    def rows(self) -> FloatArray:
        """All so far, `[models, windows * tokens, hidden]`."""
        return self.all.reshape(self._count, -1, self._every.shape[-1])


def _which_head(recipe: Recipe, decoder: Decoder) -> int | None:
    """The variant whose output head is narrowed too: the embedding's where the two are one, else the last."""
    linear = decoder.embedding if decoder.tied else decoder.head
    groups = _groups(recipe, decoder)
    return groups.index([linear]) if [linear] in groups else None


def _divergences(
    runner: LayerRunner, trial: Trial, tensors: Tensors, states: _States, *, head: int | None
) -> list[float]:
    reference, *finals = (runner.final(tensors, rows) for rows in states.rows())
    every = slice(0, len(reference))
    collected = [Divergence(np.zeros(len(reference), np.int64)) for _ in finals]
    narrowed = None if head is None else trial.head()
    for start, weight in runner.head_blocks(tensors):
        expected = reference @ weight.T
        for index, (final, divergence) in enumerate(zip(finals, collected, strict=True)):
            own = narrowed(weight) if narrowed is not None and index == head else weight
            divergence.add(every, start, expected, final @ own.T)
    return [float(divergence.kl().mean()) for divergence in collected]


def _groups(recipe: Recipe, decoder: Decoder) -> list[list[Linear]]:
    """What may be widened, in the order of `measure_effects`."""
    groups = [[decoder.embedding]]
    groups += [[getattr(layer, part) for part in readers] for layer in decoder.layers for readers in READERS.values()]
    groups += [] if decoder.tied else [[decoder.head]]
    return [group for group in groups if not any(linear.stored.name in recipe.chosen_bits for linear in group)]
