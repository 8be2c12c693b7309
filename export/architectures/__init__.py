"""Architectures, one file per Hugging Face `model_type`.

The folder is listed first and a module imported after: a missing dependency is never reported as an
unsupported model, and a hostile `model_type` cannot name a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.resources import files
from typing import Any

from edgekit.errors import ExportError, nearest, option
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.architectures.unsupported import is_misspelling, refuse_encoder, refuse_known

__all__ = ["architectures", "describe"]

_NOT_MODELS = {"__init__", "build", "config", "decoder", "rope", "unsupported"}


def architectures() -> tuple[str, ...]:
    """The `model_type`s that edgekit exports, sorted."""
    stems = (entry.name.removesuffix(".py") for entry in files(__name__).iterdir() if entry.name.endswith(".py"))
    return tuple(sorted(stem for stem in stems if stem not in _NOT_MODELS))


def describe(config: Mapping[str, Any], *, context_length: int | None = None, ignore: Iterable[str] = ()) -> Decoder:
    """Describe the model of a Hugging Face `config.json`.

    Args:
        config: Its contents.
        context_length: Longest sequence to export for; None takes the model's maximum.
        ignore: Keys that the user declares harmless.

    Raises:
        ExportError: The architecture is unknown, or the configuration needs a computation it does not cover.
    """
    model_type = config.get("model_type")
    known = architectures()
    if model_type not in known:
        refuse_known(config)
        near = nearest(str(model_type), known)
        near = near if near and is_misspelling(str(model_type), near) else None
        raise ExportError(
            f"unsupported architecture `{str(model_type)[:60]}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"known architectures: {', '.join(known)}; "
            f"for the cpu target, {option('exporter', 'optimum')} supports more",
            code="unsupported_architecture",
        )
    refuse_encoder(config)
    module = import_module(f"{__name__}.{model_type}")
    decoder: Decoder = module.describe(Config(config, ignore), context_length)
    return decoder
