"""From a checkpoint through edgekit's own writers to an artifact: description -> recipe -> writer.

Tensors stream: one is read, quantized, written and forgotten; the next is made ready meanwhile. It leaves the bundle
around the artifact to the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from edgekit.errors import ConfigError, ExportError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.artifact_sizes import runner_for, sizes_of_files
from edgekit.export.calibrated_weights import CalibratedWeights
from edgekit.export.calibration import (
    CALIBRATION_LENGTH,
    CALIBRATION_WINDOWS,
    FEW_WINDOWS,
    Calibration,
    calibration_text,
    choose_windows,
)
from edgekit.export.checkpoints.base import Checkpoint, TokenizerFiles
from edgekit.export.forward import CheckpointTensors
from edgekit.export.made import Made, Make
from edgekit.export.options import ExportOptions
from edgekit.export.progress import Report
from edgekit.export.recipe import CALIBRATED, Recipe
from edgekit.export.source_hashes import SourceHashes
from edgekit.export.tensor_check import check_tensors
from edgekit.export.text import check_tokens
from edgekit.export.weights import CheckpointWeights
from edgekit.export.writers import writer_for
from edgekit.export.writers.base import Artifact
from edgekit.memory import RUNTIMES
from edgekit.target import Target

__all__ = ["by_edgekit"]


def by_edgekit(checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions) -> Make:
    """Return what writes a checkpoint's artifact, once it is clear that it can.

    Args:
        checkpoint: Of an architecture that edgekit describes.
        target: The device profile.
        recipe: What to do with each matrix, before the options' bits.
        options: The user's choices.

    Raises:
        ExportError: The architecture is unknown, or the checkpoint's tensors are not those of its configuration.
        ConfigError: The options do not fit together.
    """
    decoder = options.describe(checkpoint.config)
    check_tensors(decoder, checkpoint)
    _check_bits(recipe, options)
    plain = recipe.with_bits(decoder, head=options.head_bits, embedding=options.embedding_bits)

    def make(folder: Path, tokenizer: TokenizerFiles, report: Report) -> Made:
        check_tokens(tokenizer, decoder.vocab_size)
        calibration = _calibration(plain, tokenizer, decoder, options)
        recipe = plain
        if options.fit_bytes is not None and calibration is not None:
            from edgekit.export.mixed_bits import fit_to_size

            tensors, ids = CheckpointTensors(checkpoint), calibration.ids
            form = target.dialect or target.artifact
            recipe = fit_to_size(
                plain, decoder, tensors, ids, size=options.fit_bytes, artifact_format=form, report=report
            )
        # MLX keeps a matrix that is stored whole as it is; ONNX takes it apart.
        linears = (decoder.embedding, *(decoder.stored_linears() if target.artifact == "mlx" else decoder.linears()))
        # onnxruntime's graph joins matrices: its writer asks for them layer by layer.
        order = linears if target.dialect == "onnxruntime" else _as_stored(linears, checkpoint)
        total = len(decoder.tensor_shapes())
        done = 0

        def progress(_: str) -> None:
            nonlocal done
            done += 1
            report("quantize and write", min(done, total), total)

        with (
            _weights(checkpoint, decoder, recipe, calibration, order) as weights,
            SourceHashes(checkpoint, weights.fraction_read) as hashing,
        ):
            artifact = writer_for(target)(decoder, weights, folder, progress)
            report("quantize and write", total, total)
            source = hashing.result()
        _check_size(folder, artifact, options.fit_bytes)
        if target.dialect == "onnxruntime":
            from edgekit.export.writers.onnx.genai_config import write_genai_config

            write_genai_config(folder, decoder, tokenizer)
        sizes = sizes_of_files(folder, target.artifact, decoder)
        runner = runner_for(target, target.dialect, sizes)
        return Made(
            artifact=artifact,
            dialect=target.dialect or "",
            architecture=decoder.model_type,
            parameters=_parameters(decoder),
            context_length=decoder.max_position,
            kv_bytes_per_token=decoder.kv_bytes_per_token(RUNTIMES[runner].kv_element),
            recipe=recipe.summary(weights.used, calibration.as_dict() if calibration else None),
            source=source,
        )

    return make


def _check_bits(recipe: Recipe, options: ExportOptions) -> None:
    """Refuse options about bits and texts that the recipe does not take, before any work."""
    if options.fit_bytes is not None:
        recipe.check_fit()
    wants_text = recipe.method in CALIBRATED or options.fit_bytes is not None
    if not wants_text and (options.calibrate_on is not None or options.calibration_windows is not None):
        raise ConfigError(
            f"--recipe {recipe.method} needs no text", hint=f"those that do: {', '.join(CALIBRATED)}; and --fit"
        )


def _calibration(
    recipe: Recipe, tokenizer: TokenizerFiles, decoder: Decoder, options: ExportOptions
) -> Calibration | None:
    """The windows to calibrate on; None where nothing asks for them."""
    if recipe.method not in CALIBRATED and options.fit_bytes is None:
        return None
    text = calibration_text(options.calibrate_on)
    length = min(CALIBRATION_LENGTH, decoder.max_position)
    windows = options.calibration_windows or (CALIBRATION_WINDOWS if recipe.method == "gptq" else FEW_WINDOWS)
    return choose_windows(tokenizer.tokenizer_json, text, length=length, windows=windows)


def _weights(
    checkpoint: Checkpoint,
    decoder: Decoder,
    recipe: Recipe,
    calibration: Calibration | None,
    order: Sequence[Linear],
) -> CheckpointWeights | CalibratedWeights:
    """Where the writer's numbers come from."""
    if recipe.method in CALIBRATED and calibration is not None:
        return CalibratedWeights(checkpoint, decoder, recipe, calibration.ids)
    return CheckpointWeights(checkpoint, recipe, order)


def _as_stored(linears: Sequence[Linear], checkpoint: Checkpoint) -> Sequence[Linear]:
    """Sort matrices by their place in the checkpoint's files."""
    place = {name: number for number, name in enumerate(checkpoint.tensors)}
    return sorted(linears, key=lambda linear: (place[linear.stored.weight], linear.first_row))


def _check_size(folder: Path, artifact: Artifact, limit: int | None) -> None:
    """Make sure that what was promised before writing holds after it."""
    # A graph's structure is no weight.
    size = sum((folder / name).stat().st_size for name in artifact.files if not name.endswith((".onnx", ".json")))
    if limit is not None and size > limit:
        raise ExportError(
            f"the weights take {size / 2**20:.1f} MiB, more than the {limit / 2**20:.1f} MiB of --fit",
            hint=f"ask for {(limit - 1.05 * (size - limit)) / 2**20:.1f} MiB",
        )


def _parameters(decoder: Decoder) -> int:
    return sum(prod(shape) for shape in decoder.tensor_shapes().values())
