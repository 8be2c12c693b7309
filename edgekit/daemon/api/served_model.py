"""The name of the served model, as requests spell it."""

from __future__ import annotations

from edgekit.daemon.api.validation import printable
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

__all__ = ["check_model", "ollama_name"]


def check_model(name: str | None, info: ModelInfo) -> None:
    """Check that a request names the served model, with or without the tag `latest`, or none.

    Raises:
        RequestError: `model_not_found`.
    """
    if name is not None and name not in {info.name, ollama_name(info)}:
        raise RequestError(
            f"model `{printable(name)}` is not served here",
            hint=f"this daemon serves `{info.name}`",
            code="model_not_found",
            param="model",
        )


def ollama_name(info: ModelInfo) -> str:
    """Return the model's name as Ollama's clients expect it: with a tag."""
    return info.name if ":" in info.name else f"{info.name}:latest"
