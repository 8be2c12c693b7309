"""The interface between the pipeline and its exporters: an artifact in a folder, and its manifest fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.self_test import SelfTest
from edgekit.export.checkpoints.base import SourceFile, TokenizerFiles
from edgekit.export.progress import Report
from edgekit.export.writers.base import Artifact

__all__ = ["ExportResult", "Exporter"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A written artifact and its manifest fields.

    Attributes:
        artifact: Its files and its `config.json`.
        dialect: Of the graph; empty for MLX.
        architecture: Hugging Face `model_type`.
        parameters: Number of weights.
        context_length: Maximum sequence length in tokens.
        kv_bytes_per_token: KV cache bytes per token.
        recipe: The manifest's entry for the recipe.
        source: The checkpoint's files, if they were hashed during the export.
        self_test: Logits that a runner of the artifact must compute.
        no_self_test: Why there is none, for the manifest.
    """

    artifact: Artifact
    dialect: str
    architecture: str
    parameters: int
    context_length: int
    kv_bytes_per_token: int
    recipe: Mapping[str, object]
    source: tuple[SourceFile, ...] = ()
    self_test: SelfTest | None = None
    no_self_test: str = "the model's logits are not finite"


Exporter = Callable[[Path, TokenizerFiles, Report], ExportResult]
"""Writes the artifact into a folder. On failure the pipeline discards what was written."""
