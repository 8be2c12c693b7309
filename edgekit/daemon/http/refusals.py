"""Errors in the shape of the API that a path belongs to."""

from __future__ import annotations

from typing import Literal

from starlette.responses import Response

from edgekit.daemon.http import anthropic, ollama
from edgekit.daemon.http.errors import error_response
from edgekit.errors import EdgekitError

__all__ = ["dialect_of", "refusal_for"]


def dialect_of(path: str) -> Literal["anthropic", "ollama", "openai"]:
    """Return the API whose errors a path has."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") and not path.startswith("/api/v0/") else "openai"


def refusal_for(path: str, error: EdgekitError) -> Response:
    """Return an error as a response of the API that a path belongs to."""
    dialect = dialect_of(path)
    if dialect == "anthropic":
        return anthropic.refusal(error)
    return ollama.refusal(error) if dialect == "ollama" else error_response(error)
