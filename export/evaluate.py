"""Measures a bundle against the checkpoint it came from, on a text.

Both models are streamed layer by layer through the same float32 forward pass over the same windows, so that the figures
are the error of the stored weights and of nothing else, on any machine, for any artifact, and a model of any size fits:
one layer's weights are in memory, and the logits of a block of the vocabulary. What a runner adds by rounding
activations is measured apart, by running the bundle itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.quality import Figures, Quality
from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.artifacts import open_artifact
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.files import read_json
from edgekit.export.divergence import Divergence
from edgekit.export.forward import CheckpointTensors, LayerRunner, Tensors
from edgekit.export.progress import Report
from edgekit.export.windows import Text, cut_windows
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk

__all__ = ["Comparison", "EvaluationOptions", "compare", "evaluate"]

FloatArray = npt.NDArray[np.float32]

# Rows of a matrix compared at a time, tokens of the vocabulary and rows of hidden states multiplied at a time.
_ROWS, _VOCABULARY, _HIDDEN = 4096, 2048, 1024
# Norms that differ by more than half precision's rounding were changed by the recipe.
_ROUNDING = 2**-9
_FLOATS = {"F16", "BF16", "F32", "F64"}


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How much is measured.

    Attributes:
        window: Tokens per window.
        windows: The most windows.
        runner: Run the bundle with its own runner too.
        threads: None takes one per physical core.
    """

    window: int = 512
    windows: int = 16
    runner: bool = False
    threads: int | None = None


def evaluate(bundle: Bundle, checkpoint: Checkpoint, text: Text, options: EvaluationOptions, report: Report) -> Quality:
    """Measure a bundle against its checkpoint.

    Args:
        bundle: The bundle.
        checkpoint: What it was made from; the reference. What it stores quantized is dequantized.
        text: Should be one that the recipe was not calibrated on.
        options: How much is measured.
        report: Receives progress.

    Raises:
        ExportError: The checkpoint is not the same model, or one of the two cannot be read.
        IncompatibleBundleError: There is no reader for the bundle's kind of artifact.
        ConfigError: The text is too short for the windows.
    """
    decoder = describe(read_json(bundle.path / "config.json"), context_length=bundle.manifest.context_length)
    _refuse_another_model(decoder, checkpoint)
    length = min(options.window, decoder.max_position)
    windows = cut_windows(checkpoint.tokenizer().tokenizer_json, text, length=length, count=options.windows)
    sides = _Sides(
        LayerRunner(decoder, threads=options.threads), CheckpointTensors(checkpoint), open_artifact(bundle, decoder)
    )
    compared = _compare(sides, windows.ids, report)
    return Quality(
        text=text.name,
        text_sha256=text.sha256,
        against=checkpoint.id,
        against_stored=_stored(decoder, checkpoint),
        window=windows.ids.shape[1],
        windows=len(windows.ids),
        tokens=windows.ids[:, 1:].size,
        perplexity=compared.divergence.perplexity(),
        weights=compared.divergence.figures(),
        runner=_run(bundle, sides, compared.hidden, windows.ids, report) if options.runner else None,
        layers=compared.layers,
        matrices=compared.matrices,
        calibrated=_calibrated_on(bundle.manifest.recipe) == text.sha256,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of weights of one model, compared on the same tokens.

    Attributes:
        divergence: Of their distributions of the next token, for every token but the last of a window.
        layers: Relative error of the hidden states after each layer.
        matrices: Relative error of each weight matrix, by its Hugging Face name.
        hidden: What the reference's head reads, float32 `[windows · (tokens - 1), hidden]`.
    """

    divergence: Divergence
    layers: tuple[float, ...]
    matrices: Mapping[str, float]
    hidden: FloatArray


def compare(
    decoder: Decoder, reference: Tensors, other: Tensors, ids: npt.NDArray[np.int64], report: Report
) -> Comparison:
    """Compare two sets of weights of one model, whatever they come from.

    Args:
        decoder: The model.
        reference: The weights that count as right.
        other: The weights to measure.
        ids: Token ids, int64 `[windows, tokens]`; every window is a sequence of its own.
        report: Receives progress.
    """
    return _compare(_Sides(LayerRunner(decoder), reference, other), ids, report)


@dataclass(frozen=True, slots=True)
class _Sides:
    """One forward pass, and two sets of numbers for it."""

    layers: LayerRunner
    reference: Tensors
    artifact: Tensors


def _refuse_another_model(decoder: Decoder, checkpoint: Checkpoint) -> None:
    for name, shape in decoder.tensor_shapes().items():
        info = checkpoint.tensors.get(name)
        if info is None or info.shape != shape:
            found = "not there" if info is None else f"shaped {info.shape}"
            raise ExportError(
                f"{checkpoint.id} is another model than the bundle's: `{name}` is {found}",
                hint="measure a bundle --against the checkpoint that it was exported from",
            )


def _compare(sides: _Sides, ids: npt.NDArray[np.int64], report: Report) -> Comparison:
    a, b, errors, matrices = _stream(sides, ids, report)
    divergence = _compare_heads(sides, a, b, ids[:, 1:].reshape(-1), report)
    return Comparison(divergence, errors, matrices, a)


def _stream(
    sides: _Sides, ids: npt.NDArray[np.int64], report: Report
) -> tuple[FloatArray, FloatArray, tuple[float, ...], dict[str, float]]:
    """Run both sides through all layers.

    Returns:
        What the heads of the two read for every token but the last of a window, `[windows · (tokens - 1), hidden]`;
        the error after each layer, and that of each matrix.
    """
    layers, decoder = sides.layers, sides.layers.decoder
    a, b = layers.embed(sides.reference, ids), layers.embed(sides.artifact, ids)
    matrices = _matrix_errors(sides, [decoder.embedding] if decoder.tied else [decoder.embedding, decoder.head])
    errors = []
    for layer in decoder.layers:
        report("measure layers", layer.index, len(decoder.layers))
        layers.run(layer, sides.reference, a, out=a)
        layers.run(layer, sides.artifact, b, out=b)
        errors.append(_relative_error(a, b))
        if _same_norms(sides, layer):
            matrices |= _matrix_errors(sides, layer.linears())
    report("measure layers", len(decoder.layers), len(decoder.layers))
    a, b = (
        layers.final(tensors, hidden[:, :-1].reshape(-1, decoder.hidden_size))
        for tensors, hidden in ((sides.reference, a), (sides.artifact, b))
    )
    return a, b, tuple(errors), matrices


def _relative_error(a: FloatArray, b: FloatArray) -> float:
    """The mean over tokens of `|b - a| / |a|`: taken all together, the first token of a window outweighs the rest."""
    norms = [np.linalg.norm(values, axis=-1) for values in (b - a, a)]
    return float(np.mean(norms[0] / np.maximum(norms[1], np.finfo(np.float32).tiny)))


def _same_norms(sides: _Sides, layer: Layer) -> bool:
    """Whether no recipe has moved factors from this layer's matrices into its norms."""
    for name in (layer.input_norm, layer.mlp_norm):
        a, b = sides.reference.norm(name), sides.artifact.norm(name)
        if np.abs(b - a).max() > _ROUNDING * np.abs(a).max():
            return False
    return True


def _matrix_errors(sides: _Sides, linears: Iterable[Linear]) -> dict[str, float]:
    """`|W' - W| / |W|` of each matrix, some rows at a time."""
    errors = {}
    for linear in linears:
        error = size = 0.0
        for start in range(0, linear.out_features, _ROWS):
            rows = start, min(start + _ROWS, linear.out_features)
            one = sides.reference.matrix(linear, *rows).reshape(-1)
            difference = sides.artifact.matrix(linear, *rows).reshape(-1) - one
            size += float(one @ one)
            error += float(difference @ difference)
        errors[linear.weight] = float(np.sqrt(error / size)) if size else 0.0
    return errors


def _compare_heads(
    sides: _Sides, a: FloatArray, b: FloatArray, targets: npt.NDArray[np.int64], report: Report
) -> Divergence:
    """Multiply by the output heads, a block of the vocabulary and some rows at a time."""
    layers, vocabulary = sides.layers, sides.layers.decoder.vocab_size
    divergence = Divergence(targets)
    heads = (layers.head_blocks(tensors, _VOCABULARY) for tensors in (sides.reference, sides.artifact))
    for (first, weight), (_, other) in zip(*heads, strict=True):
        report("measure logits", first, vocabulary)
        for start in range(0, len(a), _HIDDEN):
            rows = slice(start, start + _HIDDEN)
            divergence.add(rows, first, a[rows] @ weight.T, b[rows] @ other.T)
    report("measure logits", vocabulary, vocabulary)
    return divergence


def _run(bundle: Bundle, sides: _Sides, normed: FloatArray, ids: npt.NDArray[np.int64], report: Report) -> Figures:
    """Measure the bundle as its own runner computes it. Holds the logits of one window.

    Args:
        bundle: The bundle.
        sides: The checkpoint is the reference.
        normed: What the checkpoint's head reads, `[windows · (tokens - 1), hidden]`.
        ids: The tokens, `[windows, tokens]`.
        report: Receives progress.
    """
    layers, (count, length) = sides.layers, ids.shape
    rows = length - 1
    divergence = Divergence(ids[:, 1:].reshape(-1))
    kind, dialect = bundle.manifest.artifact.kind, bundle.manifest.artifact.dialect
    runner = open_runner(bundle.path, kind, dialect, context_length=length, threads=layers.threads)
    with closing(runner):
        step = min(runner.limits.max_chunk, 128)
        for index, window in enumerate(ids):
            report("measure the runner", index, count)
            logits = np.empty((rows, layers.decoder.vocab_size), np.float32)
            for start in range(0, rows, step):
                chunk = Chunk(0, window[start : min(start + step, rows)].tolist(), "all")
                logits[start : start + step] = runner.run([chunk])[0]
            runner.truncate(0, 0)
            here = slice(index * rows, (index + 1) * rows)
            for first, weight in layers.head_blocks(sides.reference, _VOCABULARY):
                divergence.add(here, first, normed[here] @ weight.T, logits[:, first : first + len(weight)])
    report("measure the runner", count, count)
    return divergence.figures()


def _stored(decoder: Decoder, checkpoint: Checkpoint) -> str:
    """How the checkpoint stores its matrices, the commonest first."""
    kinds = Counter(checkpoint.tensors[linear.weight].encoding for linear in decoder.stored_linears())
    if kinds.keys() <= _FLOATS:
        return "float"
    return ", ".join(kind for kind, _ in kinds.most_common()) + ", dequantized"


def _calibrated_on(recipe: Mapping[str, Any]) -> str | None:
    """SHA-256 of the text that a recipe was calibrated on, if the manifest says so."""
    calibration = recipe.get("calibration")
    return str(calibration.get("sha256")) if isinstance(calibration, Mapping) else None
