"""What an exporter hands to the pipeline: an artifact in its folder, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.export.checkpoints.base import SourceFile, TokenizerFiles
from edgekit.export.progress import Report
from edgekit.export.writers.base import Artifact

__all__ = ["Made", "Make"]


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact, written.

    Attributes:
        artifact: Its files and its `config.json`.
        dialect: Of the graph; empty for MLX.
        architecture: Hugging Face `model_type`.
        parameters: Number of weights.
        context_length: Longest sequence in tokens.
        kv_bytes_per_token: KV cache bytes that one token takes.
        recipe: What the manifest says of the recipe.
        source: The checkpoint's files, where they were hashed meanwhile.
    """

    artifact: Artifact
    dialect: str
    architecture: str
    parameters: int
    context_length: int
    kv_bytes_per_token: int
    recipe: Mapping[str, object]
    source: tuple[SourceFile, ...] = ()


Make = Callable[[Path, TokenizerFiles, Report], Made]
"""Writes the artifact into a folder; on failure that may hold a part, which the pipeline discards."""
