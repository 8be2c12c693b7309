"""Errors in the shape of the API that a path belongs to."""

from __future__ import annotations

from starlette.responses import Response

from edgekit.daemon.http import anthropic, ollama
from edgekit.daemon.http.errors import error_response
from edgekit.errors import EdgekitError

__all__ = ["refusal_for"]


def refusal_for(path: str, error: EdgekitError) -> Response:
    """Return an error as a response of the API that a path belongs to: Ollama's, Anthropic's, else OpenAI's."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic.refusal(error)
    if path.startswith("/api/") and not path.startswith("/api/v0/"):
        return ollama.refusal(error)
    return error_response(error)
