"""Measures a bundle against its checkpoint, on a text.

Both models go layer by layer through the same float32 forward pass over the same windows, so the figures show only the
error of the stored weights, on any machine and for any artifact. Memory holds one layer's weights and the logits of a
block of the vocabulary, so a model of any size fits. The error that a runner adds by rounding activations is measured
separately, by running the bundle itself.
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
from edgekit.config import RunnerName
from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.files import read_json
from edgekit.export.evaluation.readers import open_artifact
from edgekit.export.forward import CheckpointTensors, LayerRunner, Tensors
from edgekit.export.forward.kl import Divergence
from edgekit.export.progress import Report
from edgekit.export.recipes.token_windows import Text, cut_windows
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk

__all__ = ["Comparison", "EvaluationOptions", "compare", "evaluate"]

FloatArray = npt.NDArray[np.float32]

# Block sizes: matrix rows compared at a time; vocabulary entries and hidden states multiplied at a time.
_ROWS, _VOCABULARY, _HIDDEN = 4096, 2048, 1024
# Norms that differ by more than float16 rounding were changed by the recipe.
_ROUNDING = 2**-9
_FLOATS = {"F16", "BF16", "F32", "F64"}


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What to measure.

    Attributes:
        window: Tokens per window.
        windows: Maximum number of windows.
        runner: Also measure the bundle as this runner computes it; None measures the weights alone.
        threads: None takes one per physical core.
    """

    window: int = 512
    windows: int = 16
    runner: RunnerName | None = None
    threads: int | None = None


def evaluate(bundle: Bundle, checkpoint: Checkpoint, text: Text, options: EvaluationOptions, report: Report) -> Quality:
    """Measure a bundle against its checkpoint.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was exported from: the reference. Quantized tensors are dequantized.
        text: A text, preferably not the calibration text.
        options: What to measure.
        report: Receives progress.

    Raises:
        ExportError: The checkpoint is a different model, or one of the two cannot be read.
        IncompatibleBundleError: edgekit has no reader for the bundle's kind of artifact.
        ConfigError: The text is too short for the windows.
    """
    decoder = describe(read_json(bundle.path / "config.json"), context_length=bundle.manifest.context_length)
    _check_same_model(decoder, checkpoint)
    length = min(options.window, decoder.max_position)
    windows = cut_windows(checkpoint.tokenizer().tokenizer_json, text, length=length, count=options.windows)
    pair = _WeightPair(
        LayerRunner(decoder, threads=options.threads), CheckpointTensors(checkpoint), open_artifact(bundle, decoder)
    )
    compared = _compare(pair, windows.ids, report)
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
        runner=(
            None
            if options.runner is None
            else _run(bundle, pair, compared.hidden, windows.ids, report, runner=options.runner)
        ),
        layers=compared.layers,
        matrices=compared.matrices,
        calibrated=_calibrated_on(bundle.manifest.recipe) == text.sha256,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of two sets of weights of one model on the same tokens.

    Attributes:
        divergence: Of their next-token distributions, for every token but the last of a window.
        layers: Relative error of the hidden states after each layer.
        matrices: Relative error of each weight matrix, by its Hugging Face name.
        hidden: The input of the reference's output head, float32 `[windows · (tokens - 1), hidden]`.
    """

    divergence: Divergence
    layers: tuple[float, ...]
    matrices: Mapping[str, float]
    hidden: FloatArray


def compare(
    decoder: Decoder, reference: Tensors, other: Tensors, ids: npt.NDArray[np.int64], report: Report
) -> Comparison:
    """Compare two sets of weights of one model.

    Args:
        decoder: The model.
        reference: The reference weights.
        other: The weights to measure.
        ids: Token ids, int64 `[windows, tokens]`; each window is a separate sequence.
        report: Receives progress.
    """
    return _compare(_WeightPair(LayerRunner(decoder), reference, other), ids, report)


@dataclass(frozen=True, slots=True)
class _WeightPair:
    """Two sets of weights and the forward pass for both."""

    layers: LayerRunner
    reference: Tensors
    artifact: Tensors


def _check_same_model(decoder: Decoder, checkpoint: Checkpoint) -> None:
    for name, shape in decoder.tensor_shapes().items():
        info = checkpoint.tensors.get(name)
        if info is None or info.shape != shape:
            found = "missing" if info is None else f"shaped {info.shape}"
            raise ExportError(
                f"{checkpoint.id} is a different model from the bundle's: `{name}` is {found}",
                hint="measure a bundle against the checkpoint that it was exported from",
            )


def _compare(pair: _WeightPair, ids: npt.NDArray[np.int64], report: Report) -> Comparison:
    a, b, errors, matrices = _stream(pair, ids, report)
    divergence = _compare_heads(pair, a, b, ids[:, 1:].reshape(-1), report)
    return Comparison(divergence, errors, matrices, a)


def _stream(
    pair: _WeightPair, ids: npt.NDArray[np.int64], report: Report
) -> tuple[FloatArray, FloatArray, tuple[float, ...], dict[str, float]]:
    """Run both models through all layers.

    Returns:
        The inputs of the two output heads for every token but the last of a window,
        `[windows · (tokens - 1), hidden]`; the error after each layer, and that of each matrix.
    """
    layers, decoder = pair.layers, pair.layers.decoder
    a, b = layers.embed(pair.reference, ids), layers.embed(pair.artifact, ids)
    matrices = _matrix_errors(pair, [decoder.embedding] if decoder.tied else [decoder.embedding, decoder.head])
    errors = []
    for layer in decoder.layers:
        report("measure layers", layer.index, len(decoder.layers))
        layers.run(layer, pair.reference, a, out=a)
        layers.run(layer, pair.artifact, b, out=b)
        errors.append(_relative_error(a, b))
        if _same_norms(pair, layer):
            matrices |= _matrix_errors(pair, layer.linears())
    report("measure layers", len(decoder.layers), len(decoder.layers))
    a, b = (
        layers.final(tensors, hidden[:, :-1].reshape(-1, decoder.hidden_size))
        for tensors, hidden in ((pair.reference, a), (pair.artifact, b))
    )
    return a, b, tuple(errors), matrices


def _relative_error(a: FloatArray, b: FloatArray) -> float:
    """The mean over tokens of `|b - a| / |a|`; in a single norm the first token of a window would dominate."""
    norms = [np.linalg.norm(values, axis=-1) for values in (b - a, a)]
    return float(np.mean(norms[0] / np.maximum(norms[1], np.finfo(np.float32).tiny)))


def _same_norms(pair: _WeightPair, layer: Layer) -> bool:
    """Whether the layer's norms are unchanged; AWQ moves scales from matrices into norms."""
    for name in (layer.input_norm, layer.mlp_norm):
        a, b = pair.reference.norm(name), pair.artifact.norm(name)
        if np.abs(b - a).max() > _ROUNDING * np.abs(a).max():
            return False
    return True


def _matrix_errors(pair: _WeightPair, linears: Iterable[Linear]) -> dict[str, float]:
    """`|W' - W| / |W|` of each matrix, computed in blocks of rows."""
    errors = {}
    for linear in linears:
        error = size = 0.0
        for start in range(0, linear.out_features, _ROWS):
            rows = start, min(start + _ROWS, linear.out_features)
            reference = pair.reference.matrix(linear, *rows).reshape(-1)
            difference = pair.artifact.matrix(linear, *rows).reshape(-1) - reference
            size += float(reference @ reference)
            error += float(difference @ difference)
        errors[linear.weight] = float(np.sqrt(error / size)) if size else 0.0
    return errors


def _compare_heads(
    pair: _WeightPair, a: FloatArray, b: FloatArray, targets: npt.NDArray[np.int64], report: Report
) -> Divergence:
    """Multiply by the output heads, in blocks of the vocabulary and of rows."""
    layers, vocabulary = pair.layers, pair.layers.decoder.vocab_size
    divergence = Divergence(targets)
    heads = (layers.head_blocks(tensors, _VOCABULARY) for tensors in (pair.reference, pair.artifact))
    for (first, weight), (_, other) in zip(*heads, strict=True):
        report("measure logits", first, vocabulary)
        for start in range(0, len(a), _HIDDEN):
            rows = slice(start, start + _HIDDEN)
            divergence.add(rows, first, a[rows] @ weight.T, b[rows] @ other.T)
    report("measure logits", vocabulary, vocabulary)
    return divergence


def _run(
    bundle: Bundle,
    pair: _WeightPair,
    normed: FloatArray,
    ids: npt.NDArray[np.int64],
    report: Report,
    *,
    runner: RunnerName,
) -> Figures:
    """Measure the bundle as a runner computes it: by default, one for TensorRT with FP16 activations, as TensorRT does.

    Memory holds the logits of one window.

    Args:
        bundle: The bundle.
        pair: The weights; the checkpoint is the reference.
        normed: The input of the checkpoint's output head, `[windows · (tokens - 1), hidden]`.
        ids: The tokens, `[windows, tokens]`.
        report: Receives progress.
        runner: The runner's name.
    """
    layers, (count, length) = pair.layers, ids.shape
    rows = length - 1
    divergence = Divergence(ids[:, 1:].reshape(-1))
    kind, dialect = bundle.manifest.artifact.kind, bundle.manifest.artifact.dialect
    if runner == "auto" and dialect in {"portable", "native"}:
        runner = "onnxruntime"  # the CPU kernels round activations to 8 bits
    opened = open_runner(bundle.path, kind, dialect, context_length=length, threads=layers.threads, runner=runner)
    with closing(opened):
        step = min(opened.limits.max_chunk, 128)
        for index, window in enumerate(ids):
            report("measure the runner", index, count)
            logits = np.empty((rows, layers.decoder.vocab_size), np.float32)
            for start in range(0, rows, step):
                chunk = Chunk(0, window[start : min(start + step, rows)].tolist(), "all")
                logits[start : start + step] = opened.run([chunk])[0]
            opened.truncate(0, 0)
            span = slice(index * rows, (index + 1) * rows)
            for first, weight in layers.head_blocks(pair.reference, _VOCABULARY):
                divergence.add(span, first, normed[span] @ weight.T, logits[:, first : first + len(weight)])
    report("measure the runner", count, count)
    return divergence.figures()


def _stored(decoder: Decoder, checkpoint: Checkpoint) -> str:
    """The checkpoint's storage formats, the most common first."""
    kinds = Counter(checkpoint.tensors[linear.weight].encoding for linear in decoder.stored_linears())
    if kinds.keys() <= _FLOATS:
        return "float"
    return ", ".join(kind for kind, _ in kinds.most_common()) + ", dequantized"


def _calibrated_on(recipe: Mapping[str, Any]) -> str | None:
    """SHA-256 of the recipe's calibration text, if the manifest has one."""
    calibration = recipe.get("calibration")
    return str(calibration.get("sha256")) if isinstance(calibration, Mapping) else None
