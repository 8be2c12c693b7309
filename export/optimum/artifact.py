"""Exports a checkpoint folder through Optimum to an artifact: exporter -> check -> INT4 pass."""

from __future__ import annotations

import tempfile
from collections import Counter
from math import prod
from pathlib import Path

from edgekit.errors import ConfigError, ExportError, option
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.base import Checkpoint, TokenizerFiles
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.checkpoints.tokenizer_files import check_tokens
from edgekit.export.checkpoints.validate import check_tensors
from edgekit.export.exporter import Exporter, ExportResult
from edgekit.export.optimum.env import optimum_python
from edgekit.export.optimum.exporter import check_graph, check_reference, export_graph
from edgekit.export.optimum.int4_pass import FILES, quantize_graph
from edgekit.export.optimum.source import Source
from edgekit.export.options import ExportOptions
from edgekit.export.progress import Report
from edgekit.export.recipes.recipe import Recipe
from edgekit.export.writers.base import Artifact
from edgekit.target import Target

__all__ = ["by_optimum"]


def by_optimum(checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions) -> Exporter:
    """Return the exporter that writes a checkpoint's artifact with Optimum, after checking that it can.

    Args:
        checkpoint: One that transformers can load: a folder with safetensors in floating point.
        target: Its artifact is a graph for onnxruntime.
        recipe: How to quantize each matrix.
        options: The user's choices.

    Raises:
        ConfigError: The target takes another artifact.
        ExportError: transformers cannot load such a checkpoint, or its tensors are not those of its configuration.
        EdgekitError: `missing_optimum`.
    """
    if target.dialect != "onnxruntime":
        form = "MLX weights" if target.artifact == "mlx" else f"the {target.dialect} dialect of ONNX"
        raise ConfigError(
            f"target `{target.name}` takes {form}, which Optimum does not write",
            hint=f"{option('exporter', 'optimum')} is for the cpu target; leave it out for this one",
        )
    if not isinstance(checkpoint, FolderCheckpoint):
        raise ExportError(
            f"Optimum cannot read {checkpoint.id}: it takes a folder with config.json and safetensors, or a hub id",
            hint=f"leave out {option('exporter', 'optimum')}, or name the original checkpoint",
            code="unsupported_encoding",
        )
    if checkpoint.config.get("quantization_config"):
        raise ExportError(
            "the checkpoint is quantized already, but Optimum exports from floating point",
            hint=f"leave out {option('exporter', 'optimum')}, or name the original in float16 or bfloat16",
            code="unsupported_encoding",
        )
    optimum_python()
    decoder = _description(checkpoint, options)
    if decoder is not None:
        check_tensors(decoder, checkpoint)
    parameters = sum(prod(info.shape) for info in checkpoint.tensors.values())

    def export(folder: Path, tokenizer: TokenizerFiles, report: Report) -> ExportResult:
        # In the unfinished bundle folder: on the same disk, and removed with it in any case.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".optimum.") as temporary:
            report("export with Optimum", 0, None)
            config, ignore = checkpoint.config, options.ignore_keys
            graph = export_graph(checkpoint.folder, config, Path(temporary), ignore=ignore)
            source, length = Source(graph.folder), options.context_length or graph.context_length
            if not 0 < length <= graph.context_length:
                raise ExportError(
                    f"the model's context is {graph.context_length} tokens; it cannot be exported for {length}"
                )
            check_tokens(tokenizer, source.vocab_size)
            report("check against torch", 0, None)
            check_graph(graph)
            if decoder is not None:
                check_reference(graph, checkpoint, options.ignore_keys)
            used: Counter[str] = quantize_graph(source, folder, recipe, context_length=length, report=report)
        return ExportResult(
            artifact=Artifact(files=FILES, config=dict(checkpoint.config)),
            dialect="optimum",
            architecture=str(checkpoint.config.get("model_type")),
            parameters=parameters,
            context_length=length,
            kv_bytes_per_token=source.kv_bytes_per_token,
            recipe=recipe.summary(used),
            no_self_test="the optimum exporter computes none",
        )

    return export


def _description(checkpoint: Checkpoint, options: ExportOptions) -> Decoder | None:
    """Edgekit's own description of the model, None if it has none.

    Raises:
        ExportError: The configuration contradicts itself.
    """
    try:
        return describe(checkpoint.config, ignore=options.ignore_keys)
    except ExportError as error:
        if error.code in {"unsupported_architecture", "unsupported_configuration"}:
            return None
        raise
