"""Reads a model's sizes from a bundle's `config.json`."""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.memory import Shapes

__all__ = ["model_shapes"]

# Above any model's; a larger number is a fault of the file.
_MAX_SIZE = 1 << 31


def model_shapes(folder: Path) -> Shapes | None:
    """Read a bundle's sizes from its `config.json`; None if the file or one of the sizes is missing or no size."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return Shapes(
            hidden=_size(config["hidden_size"]),
            intermediate=_size(config["intermediate_size"]),
            heads=_size(config["num_attention_heads"]),
            vocab=_size(config["vocab_size"]),
            kv_heads=_size(config.get("num_key_value_heads") or 0),
            head_dim=_size(config.get("head_dim") or 0),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise ValueError("not a size")
    return value
