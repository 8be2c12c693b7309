"""Errors as HTTP responses: the status of each error code, and the OpenAI error body."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from edgekit.daemon.api import error_body
from edgekit.daemon.api.validation import printable
from edgekit.errors import EdgekitError, RequestError, UnavailableError

if TYPE_CHECKING:
    from edgekit.daemon.api.openai_types import ErrorBody

__all__ = ["STATUS", "error_response", "error_text", "http_error", "http_status", "openai_error"]

logger = logging.getLogger(__name__)

# An installed edgekit has no documentation of its own.
_DOCS = "https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md"
# A path that is closer to a served one, by `difflib`'s ratio, is taken for a misspelling of it.
_MISSPELT = 0.85

# Codes whose status is not that of the error's class.
STATUS = {
    "api_key_expired": 401,
    "api_key_missing": 401,
    "body_too_large": 413,
    "deadline_exceeded": 504,
    "generation_failed": 503,
    "host_not_allowed": 403,
    "invalid_api_key": 401,
    "method_not_allowed": 405,
    "model_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "not_implemented": 501,
    "origin_not_allowed": 403,
    "overloaded": 429,
    "rate_limited": 429,
    "scope_missing": 403,
    "too_many_attempts": 429,
}


def http_status(error: EdgekitError) -> int:
    """Return the HTTP status of an error: that of its code, else 400 for a bad request, 503 if unavailable, 500."""
    if error.code in STATUS:
        return STATUS[error.code]
    if isinstance(error, UnavailableError):
        return 503
    return 400 if isinstance(error, RequestError) else 500


def error_text(error: EdgekitError) -> str:
    """Return the message and, in brackets, the hint: clients show this text and nothing else."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def openai_error(error: EdgekitError) -> ErrorBody:
    """Return OpenAI's error body, whose `message` has the hint too."""
    body = error_body(error)
    return {"error": {**body["error"], "message": error_text(error)}}


def error_response(error: EdgekitError, body: Mapping[str, object] | None = None) -> Response:
    """Return an error as a response; an `UnavailableError` sets `Retry-After`.

    Args:
        error: The error.
        body: The body in the API's own shape; OpenAI's unless given.
    """
    status = http_status(error)
    headers = {}
    if isinstance(error, UnavailableError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    elif status >= 500:
        # OpenAI's clients retry every 5xx, but these failures would only repeat.
        headers["X-Should-Retry"] = "false"
    if status == 500:
        logger.error("answered 500: %s", error.message)
    return JSONResponse(openai_error(error) if body is None else body, status, headers)


def http_error(status: int, method: str, path: str, *, allowed: str = "", paths: Iterable[str] = ()) -> EdgekitError:
    """Return the error for a status set by the router.

    Args:
        status: 404 or 405.
        method: The request's method.
        path: The path that was asked for.
        allowed: The methods of this path.
        paths: The paths that are served.
    """
    asked = f"`{printable(method)} {printable(path)}`"
    if status == 405:
        return RequestError(
            f"{asked} is not allowed", hint=f"use {allowed}" if allowed else None, code="method_not_allowed"
        )
    near = _nearest("/" + path.strip("/"), paths)
    hint = f"did you mean `{near}`?" if near else f"{_DOCS} lists the endpoints"
    return RequestError(f"unknown endpoint {asked}", hint=hint, code="not_found")


def _nearest(path: str, paths: Iterable[str]) -> str | None:
    """Return the served path that was meant: what lacks the least in front, else what is most like it."""
    # A path may have many thousand characters: that one is no misspelling.
    if path == "/" or len(path) > 200:
        return None
    known = [one for one in paths if one != "/"]
    # A base URL without its `/v1`.
    longer = [one for one in known if one.endswith(path)]
    if longer:
        return min(longer, key=len)

    def likeness(one: str) -> float:
        return SequenceMatcher(None, path, one, autojunk=False).ratio()

    # A base URL with one `/v1` too many, or a misspelt name.
    near = {one: ratio for one in known if (ratio := likeness(one)) >= _MISSPELT or path.endswith(one)}
    return max(near, key=lambda one: near[one], default=None)
