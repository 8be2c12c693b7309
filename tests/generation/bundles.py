"""Tiny bundles with random weights, written by the real writers and loaded by the real runners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.bundle.bundle import hash_folder, open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME, Artifact, Manifest, MemoryTable
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.tokenizer_files import write_text_files
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.mlx import MlxWriter
from edgekit.export.writers.onnx import OnnxWriter
from tests.models import CHATML, TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors

__all__ = ["seal", "tiny_bundle"]


def tiny_bundle(
    folder: Path,
    kind: Literal["onnx", "mlx"],
    *,
    bits: Literal[4, 8, 32] = 8,
    template: str = CHATML,
    sampling: Mapping[str, float] | None = None,
    **checkpoint_options: Any,
) -> Path:
    """Write a bundle of a tiny Qwen2 with a context of 256 tokens.

    Args:
        folder: A checkpoint and the bundle are written into it.
        kind: The artifact's kind.
        bits: Bits per weight; 32 keeps floats. With fewer, ONNX computes with 8-bit activations.
        template: The chat template.
        sampling: The model's own sampling defaults.
        checkpoint_options: Passed to `tiny_checkpoint`.

    Returns:
        The bundle's folder, inside `folder`.
    """
    checkpoint = tiny_checkpoint(folder / "checkpoint", **checkpoint_options)
    decoder = tiny_decoder(checkpoint)
    bundle = folder / "bundle"
    bundle.mkdir()
    writer = OnnxWriter(dialect="onnxruntime") if kind == "onnx" else MlxWriter(dtype="float32")
    offset = Offset.ZERO_POINT if kind == "onnx" else Offset.FLOAT
    quantize = None if bits == 32 else lambda _, weight: lsq(weight, Grid(bits, 32, offset, np.float16))
    artifact = writer(decoder, TensorWeights(tiny_tensors(checkpoint), quantize), bundle, lambda _: None)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = TokenizerFiles(
        tokenizer_json=(checkpoint / "tokenizer.json").read_bytes(),
        chat_template=template,
        special={name: settings[name] for name in ("bos_token", "eos_token", "pad_token")},
        eos_token_ids=(2,),
    )
    write_text_files(bundle, artifact.config, tokenizer, decoder.max_position, licence="Apache-2.0")
    manifest = Manifest(
        name="tiny",
        created="2026-01-02T03:04:05Z",
        edgekit="0.0.0",
        source={"id": "tiny", "files": []},
        architecture="qwen2",
        parameters=1,
        artifact=Artifact(kind, "onnxruntime" if kind == "onnx" else ""),
        recipe={},
        context_length=decoder.max_position,
        memory=MemoryTable(weights=1, kv_cache_per_token=1),
        eos_token_ids=(2,),
        sampling=sampling or {},
        licence="Apache-2.0",
        compatible=("cpu",),
        files=hash_folder(bundle),
    )
    (bundle / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return bundle


def seal(bundle: Path) -> None:
    """Write the manifest of a bundle whose files a test has changed."""
    manifest = replace(open_bundle(bundle).manifest, files=hash_folder(bundle))
    (bundle / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
