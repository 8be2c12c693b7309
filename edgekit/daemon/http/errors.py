"""Errors as HTTP responses: the status of each stable code, and the OpenAI shape of the body."""

from __future__ import annotations

import logging
import math
from typing import Any

from starlette.responses import JSONResponse, Response

from edgekit.daemon.wire import error_body
from edgekit.errors import EdgekitError, RequestError

__all__ = ["error_response", "http_error"]

logger = logging.getLogger(__name__)

_STATUS = {
    "body_too_large": 413,
    "deadline_exceeded": 504,
    "generation_failed": 503,
    "host_not_allowed": 403,
    "method_not_allowed": 405,
    "model_not_found": 404,
    "not_found": 404,
    "not_ready": 503,
    "origin_not_allowed": 403,
    "overloaded": 429,
    "shutting_down": 503,
}


def status_of(error: EdgekitError) -> int:
    """Return the HTTP status of an error: 400 if the caller can mend it, else 500, unless its code says more."""
    return _STATUS.get(error.code, 400 if isinstance(error, RequestError) else 500)


def error_response(error: EdgekitError, body: dict[str, Any] | None = None) -> Response:
    """Return an error as a response, with `Retry-After` where waiting helps.

    Args:
        error: What went wrong.
        body: How the dialect says it; the OpenAI API's way unless given.
    """
    status = status_of(error)
    headers = {}
    if isinstance(error, RequestError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    elif status >= 500:
        # OpenAI's clients repeat every 5xx; what failed once for its own reasons would only fail again.
        headers["X-Should-Retry"] = "false"
    if status == 500:
        logger.error("answered 500: %s", error.message)
    return JSONResponse(error_body(error) if body is None else body, status, headers)


def http_error(status: int) -> EdgekitError:
    """Return the error for a status that the router gives: 404 or 405."""
    if status == 405:
        return RequestError("this path does not take that method", code="method_not_allowed")
    return RequestError("there is nothing at this path", hint="see docs/http.md for what there is", code="not_found")
