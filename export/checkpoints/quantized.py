"""Detects from its configuration how a Hugging Face folder packs its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.awq import Awq
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checkpoints.gptq import Gptq
from edgekit.export.checkpoints.packed import Layout, PackedShards
from edgekit.export.checkpoints.safetensors import Shards

__all__ = ["LEGACY_QUANT_CONFIGS", "layout_of", "packing_settings", "unpacked"]

LEGACY_QUANT_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that early AutoGPTQ and AutoAWQ wrote instead of `quantization_config`, and the method that each implies."""

_METHODS: Mapping[str, type[Gptq | Awq]] = {"gptq": Gptq, "awq": Awq}


def layout_of(folder: Path, config: Mapping[str, Any]) -> Layout | None:
    """Return how a folder's linear layers are packed; None if they are plain tensors.

    Args:
        folder: The checkpoint.
        config: Its `config.json`.

    Raises:
        ExportError: edgekit does not read this packing.
    """
    stated = packing_settings(folder, config)
    if stated is None:
        return None
    settings, implied = stated
    method = settings.get("quant_method", implied)
    if not isinstance(method, str) or method not in _METHODS:
        raise _unsupported(str(method))
    return _METHODS[method].of(settings)


def packing_settings(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Return the settings of a folder's quantization, and the method if they state none; None if it is not quantized.

    Raises:
        ExportError: They are not an object.
    """
    settings = config.get("quantization_config") or config.get("quantization")
    implied = "mlx"
    if not settings:
        name = next((name for name in LEGACY_QUANT_CONFIGS if (folder / name).is_file()), None)
        if name is None:
            return None
        settings, implied = read_json(folder / name), LEGACY_QUANT_CONFIGS[name]
    if not isinstance(settings, dict):
        raise _unsupported("unknown")
    return settings, implied


def unpacked(shards: Shards, layout: Layout | None) -> Shards | PackedShards:
    """Return a folder's tensors with packed layers unpacked."""
    return shards if layout is None else PackedShards(shards, layout)


def _unsupported(method: str) -> ExportError:
    return ExportError(
        f"the checkpoint is quantized already ({method[:40]}), in a format that edgekit does not read",
        hint="it reads GPTQ and AWQ: export one of these, the original in float16 or bfloat16, or a GGUF file",
        code="unsupported_encoding",
    )
