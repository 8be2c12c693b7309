"""The name of the served model, as requests spell it."""

from __future__ import annotations

from edgekit.daemon.api.validation import printable
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

__all__ = ["check_model", "find_name", "tagged"]


def check_model(name: str | None, info: ModelInfo) -> None:
    """Check that a request names the served model or an alias, with or without the tag `latest`, or none.

    Raises:
        RequestError: `model_not_found`.
    """
    if name is not None:
        find_name(name, info)


def find_name(name: str, info: ModelInfo) -> str:
    """Return the model's name or alias that a request means, without a tag `latest` that it adds.

    Raises:
        RequestError: `model_not_found`.
    """
    for known in info.names:
        if name in {known, tagged(known)}:
            return known
    aliases = ", ".join(f"`{alias}`" for alias in info.names[1:])
    raise RequestError(
        f"model `{printable(name)}` is not served here",
        hint=f"this daemon serves `{info.name}`" + (f", also as {aliases}" if aliases else ""),
        code="model_not_found",
        param="model",
    )


def tagged(name: str) -> str:
    """Return a model's name as Ollama's clients expect it: with a tag."""
    return name if ":" in name else f"{name}:latest"
