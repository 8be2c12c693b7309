"""Errors in the shape of each API."""

from __future__ import annotations

from starlette.responses import Response

from edgekit.daemon.http import anthropic, ollama
from edgekit.daemon.http.errors import error_response
from edgekit.daemon.http.operations import Errors
from edgekit.errors import EdgekitError

__all__ = ["refusal"]


def refusal(errors: Errors, error: EdgekitError) -> Response:
    """Return an error as a response of an API."""
    if errors == "anthropic":
        return anthropic.refusal(error)
    return ollama.refusal(error) if errors == "ollama" else error_response(error)
