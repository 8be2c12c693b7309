"""From a checkpoint folder through Optimum to an artifact: exporter -> check -> INT4 pass.

It knows the steps, and leaves the bundle around the artifact to the pipeline.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from math import prod
from pathlib import Path

from edgekit.errors import ConfigError, ExportError
from edgekit.export.checkpoints.base import Checkpoint, TokenizerFiles
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.made import Made, Make
from edgekit.export.optimum.env import optimum_python
from edgekit.export.optimum.exporter import check_graph, export_graph
from edgekit.export.optimum.int4_pass import FILES, quantize_graph
from edgekit.export.optimum.source import Source
from edgekit.export.progress import Report
from edgekit.export.recipe import Recipe
from edgekit.export.writers.base import Artifact
from edgekit.target import Target

__all__ = ["by_optimum"]


def by_optimum(checkpoint: Checkpoint, target: Target, recipe: Recipe, context_length: int | None = None) -> Make:
    """Return what writes a checkpoint's artifact with Optimum, once it is clear that it can.

    Args:
        checkpoint: One that transformers can load: a folder with safetensors in floating point.
        target: Its artifact is a graph for onnxruntime.
        recipe: What to do with each matrix.
        context_length: Longest sequence to export for; None takes the model's own.

    Raises:
        ConfigError: The target takes something else.
        ExportError: transformers cannot load such a checkpoint.
        EdgekitError: `missing_optimum`.
    """
    if target.dialect != "onnxruntime":
        form = "MLX weights" if target.artifact == "mlx" else f"the {target.dialect} dialect of ONNX"
        raise ConfigError(
            f"target `{target.name}` takes {form}, which Optimum does not write",
            hint="--exporter optimum is for the cpu target; leave it out for this one",
        )
    if not isinstance(checkpoint, FolderCheckpoint):
        raise ExportError(
            f"Optimum cannot read {checkpoint.id}: it takes a folder with config.json and safetensors, or a hub id",
            hint="leave out --exporter optimum, or name the original checkpoint",
            code="unsupported_encoding",
        )
    if checkpoint.config.get("quantization_config"):
        raise ExportError(
            "the checkpoint is quantized already, and Optimum exports from floating point",
            hint="leave out --exporter optimum, or name the original in float16 or bfloat16",
            code="unsupported_encoding",
        )
    optimum_python()
    parameters = sum(prod(info.shape) for info in checkpoint.tensors.values())

    def make(folder: Path, _: TokenizerFiles, report: Report) -> Made:
        # In the bundle's unfinished folder: on the same disk, and gone with it whatever happens.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".optimum.") as place:
            report("export with Optimum", 0, None)
            graph = export_graph(checkpoint.folder, Path(place))
            source, longest = Source(graph.folder), context_length or graph.context_length
            if not 0 < longest <= graph.context_length:
                raise ExportError(
                    f"the model's context is {graph.context_length} tokens; it cannot be exported for {longest}"
                )
            report("check against torch", 0, None)
            check_graph(graph)
            used: Counter[str] = quantize_graph(source, folder, recipe, context_length=longest, report=report)
        return Made(
            artifact=Artifact(files=FILES, config=dict(checkpoint.config)),
            dialect="optimum",
            architecture=str(checkpoint.config.get("model_type")),
            parameters=parameters,
            context_length=longest,
            kv_bytes_per_token=source.kv_bytes_per_token,
            recipe=recipe.summary(used),
        )

    return make
