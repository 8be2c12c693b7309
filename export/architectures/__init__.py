"""Architectures, one file per Hugging Face `model_type`.

The folder is listed first and a module imported after: a missing dependency is never reported as an
unsupported model, and a hostile `model_type` cannot name a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.resources import files
from typing import Any

from edgekit.errors import ExportError, nearest
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder

__all__ = ["architectures", "describe"]

_NOT_MODELS = {"__init__", "config", "decoder", "rope"}


def architectures() -> tuple[str, ...]:
    """The `model_type`s that edgekit exports, sorted."""
    stems = (entry.name.removesuffix(".py") for entry in files(__name__).iterdir() if entry.name.endswith(".py"))
    return tuple(sorted(stem for stem in stems if stem not in _NOT_MODELS))


def describe(config: Mapping[str, Any], *, context_length: int | None = None, ignore: Iterable[str] = ()) -> Decoder:
    """Describe the model that a Hugging Face `config.json` stands for.

    Args:
        config: Its contents.
        context_length: Longest sequence to export for; None takes the longest that the model allows.
        ignore: Keys that the user declares harmless.

    Raises:
        ExportError: The architecture is unknown, or the configuration asks for mathematics it does not cover.
    """
    model_type = config.get("model_type")
    known = architectures()
    if model_type not in known:
        near = nearest(str(model_type), known)
        raise ExportError(
            f"unsupported architecture `{model_type}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"known architectures: {', '.join(known)}; "
            "for the cpu target --exporter optimum knows more",
            code="unsupported_architecture",
        )
    module = import_module(f"{__name__}.{model_type}")
    decoder: Decoder = module.describe(Config(config, ignore), context_length)
    return decoder
