"""Exports a checkpoint with edgekit's own writers: description -> recipe -> writer.

Tensors are streamed: each is read, quantized, written and released while the next one is prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from edgekit.errors import ConfigError, ExportError, option
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.checkpoints.base import Checkpoint, TokenizerFiles
from edgekit.export.checkpoints.hashing import SourceHashes
from edgekit.export.checkpoints.validate import check_tensors
from edgekit.export.exporter import Exporter, ExportResult
from edgekit.export.forward import CheckpointTensors
from edgekit.export.options import ExportOptions
from edgekit.export.progress import Report
from edgekit.export.recipes.calibrated import CalibratedWeights
from edgekit.export.recipes.calibration_text import (
    CALIBRATION_LENGTH,
    CALIBRATION_WINDOWS,
    FEW_WINDOWS,
    Calibration,
    calibration_text,
    choose_windows,
)
from edgekit.export.recipes.reading_order import reading_order
from edgekit.export.recipes.recipe import CALIBRATED, Recipe
from edgekit.export.recipes.self_test import ObservedWeights, self_test_prompt
from edgekit.export.recipes.streaming import CheckpointWeights
from edgekit.export.writers import writer_for
from edgekit.export.writers.base import Artifact
from edgekit.export.writers.limits import check_support
from edgekit.export.writers.sizes import runner_for, sizes_of_files
from edgekit.memory import RUNTIMES
from edgekit.target import Target

__all__ = ["builtin_exporter"]


def builtin_exporter(checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions) -> Exporter:
    """Check that a checkpoint can be exported and return the exporter for it.

    Args:
        checkpoint: The model; edgekit must describe its architecture.
        target: The device profile.
        recipe: The recipe, before the bits in `options` are applied.
        options: The user's choices.

    Raises:
        ExportError: The architecture is unknown, the target cannot compute it, or the checkpoint's tensors do not match
            its configuration.
        ConfigError: The options contradict each other.
    """
    decoder = options.describe(checkpoint.config)
    check_support(decoder, target)
    check_tensors(decoder, checkpoint)
    _check_bits(recipe, options)
    base_recipe = recipe.with_bits(decoder, head=options.head_bits, embedding=options.embedding_bits)

    def export(folder: Path, tokenizer: TokenizerFiles, report: Report) -> ExportResult:
        calibration = _calibration(base_recipe, tokenizer, decoder, options)
        recipe = base_recipe
        if options.fit_bytes is not None and calibration is not None:
            from edgekit.export.recipes.mixed_bits import fit_to_size

            tensors, ids = CheckpointTensors(checkpoint), calibration.ids
            artifact_format = target.dialect or target.artifact
            recipe = fit_to_size(
                base_recipe,
                decoder,
                tensors,
                ids,
                size=options.fit_bytes,
                artifact_format=artifact_format,
                report=report,
            )
        # MLX keeps fused matrices (such as qkv_proj) as the checkpoint stores them; ONNX splits them.
        linears = (decoder.embedding, *(decoder.stored_linears() if target.artifact == "mlx" else decoder.linears()))
        # onnxruntime's graph fuses matrices: its writer reads them layer by layer.
        ordered = target.dialect == "onnxruntime"
        order = linears if ordered else reading_order(decoder, linears, checkpoint, recipe)
        total = len(decoder.tensor_shapes())
        done = 0

        def progress(_: str) -> None:
            nonlocal done
            done += 1
            report("quantize and write", min(done, total), total)

        prompt = self_test_prompt(tokenizer.tokenizer_json, decoder)
        with (
            _weights(checkpoint, decoder, recipe, calibration, order) as weights,
            ObservedWeights(weights, decoder, prompt) as observed,
            SourceHashes(checkpoint, weights.fraction_read) as hashing,
        ):
            artifact = writer_for(target)(decoder, observed, folder, progress)
            self_test = observed.result()
            report("quantize and write", total, total)
            source = hashing.result()
        _check_size(folder, artifact, options.fit_bytes)
        if target.dialect == "onnxruntime":
            from edgekit.export.writers.onnx.genai_config import write_genai_config

            write_genai_config(folder, decoder, tokenizer)
        sizes = sizes_of_files(folder, target.artifact, decoder)
        runner = runner_for(target, target.dialect, sizes)
        return ExportResult(
            artifact=artifact,
            dialect=target.dialect or "",
            architecture=decoder.model_type,
            parameters=_parameters(decoder),
            context_length=decoder.max_position,
            kv_bytes_per_token=decoder.kv_bytes_per_token(RUNTIMES[runner].kv_element),
            recipe=recipe.summary(weights.used, calibration.as_dict() if calibration else None),
            source=source,
            self_test=self_test,
        )

    return export


def _check_bits(recipe: Recipe, options: ExportOptions) -> None:
    """Reject bit and calibration options that the recipe does not take, before any work."""
    if options.fit_bytes is not None:
        recipe.check_fit()
    calibrates = recipe.method in CALIBRATED or options.fit_bytes is not None
    if not calibrates and (options.calibrate_on is not None or options.calibration_windows is not None):
        raise ConfigError(
            f"{option('recipe', recipe.method)} takes no calibration text",
            hint=f"recipes that do: {', '.join(CALIBRATED)}; so does {option('fit_bytes')}",
        )
    if calibrates:
        calibration_text(options.calibrate_on)


def _calibration(
    recipe: Recipe, tokenizer: TokenizerFiles, decoder: Decoder, options: ExportOptions
) -> Calibration | None:
    """Choose the calibration windows; None if nothing needs calibration."""
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
    """Return the writer's source of weights."""
    if recipe.method in CALIBRATED and calibration is not None:
        return CalibratedWeights(checkpoint, decoder, recipe, calibration.ids)
    return CheckpointWeights(checkpoint, recipe, order)


def _check_size(folder: Path, artifact: Artifact, limit: int | None) -> None:
    """Check the written weights against the size to fit, which was predicted before writing."""
    # The graph files hold no weights.
    size = sum((folder / name).stat().st_size for name in artifact.files if not name.endswith((".onnx", ".json")))
    if limit is not None and size > limit:
        raise ExportError(
            f"the weights take {size / 2**20:.1f} MiB, more than the {limit / 2**20:.1f} MiB of {option('fit_bytes')}",
            hint=f"try {option('fit_bytes', int(limit - 1.05 * (size - limit)))}",
        )


def _parameters(decoder: Decoder) -> int:
    return sum(prod(shape) for shape in decoder.tensor_shapes().values())
