"""Which packing a Hugging Face folder uses, as its configuration says. It knows no layout."""

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

__all__ = ["SETTINGS", "layout_of", "unpacked"]

SETTINGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that early AutoGPTQ and AutoAWQ wrote beside a `config.json` that said nothing, and what they meant."""

_METHODS: Mapping[str, type[Gptq | Awq]] = {"gptq": Gptq, "awq": Awq}


def layout_of(folder: Path, config: Mapping[str, Any]) -> Layout | None:
    """Return how a folder's linear layers are packed; None where they are plain tensors.

    Args:
        folder: The checkpoint.
        config: Its `config.json`.

    Raises:
        ExportError: In a way that edgekit does not read.
    """
    settings = config.get("quantization_config") or config.get("quantization")
    assumed = "mlx"
    if not settings:
        name = next((name for name in SETTINGS if (folder / name).is_file()), None)
        if name is None:
            return None
        settings, assumed = read_json(folder / name), SETTINGS[name]
    if not isinstance(settings, dict):
        raise _unread("unknown")
    method = settings.get("quant_method", assumed)
    if not isinstance(method, str) or method not in _METHODS:
        raise _unread(str(method))
    return _METHODS[method].of(settings)


def unpacked(shards: Shards, layout: Layout | None) -> Shards | PackedShards:
    """Return a folder's tensors with packed layers unpacked."""
    return shards if layout is None else PackedShards(shards, layout)


def _unread(method: str) -> ExportError:
    return ExportError(
        f"the checkpoint is quantized already ({method[:40]}), in a way that edgekit does not read",
        hint="it reads GPTQ and AWQ: export one of these, the original in float16 or bfloat16, or a GGUF file",
        code="unsupported_encoding",
    )
