"""Errors in the shape of the API that a path belongs to."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgekit.daemon.http import ollama
from edgekit.daemon.http.errors import error_response, error_text, http_status
from edgekit.errors import EdgekitError

__all__ = ["anthropic_error", "refusal_for"]

# Anthropic's names of errors, by status; the others are `api_error` and `invalid_request_error`.
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def refusal_for(path: str, error: EdgekitError) -> Response:
    """Return an error as a response of the API that a path belongs to: Ollama's, Anthropic's, else OpenAI's."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return error_response(error, anthropic_error(error))
    if path.startswith("/api/") and not path.startswith("/api/v0/"):
        return ollama.refusal(error)
    return error_response(error)


def anthropic_error(error: EdgekitError) -> dict[str, Any]:
    """Return Anthropic's error body, with edgekit's `code` added."""
    status = http_status(error)
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error_text(error), "code": error.code}}
