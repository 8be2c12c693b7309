"""Origins of web pages that may send requests, and the headers that let them read the replies (CORS)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from edgekit.errors import ConfigError

__all__ = ["cors", "origin_pattern"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_MAX_AGE_S = 7200
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\*|(?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:(?:\*|[0-9]{1,5}))?"
)

EXPOSED = (
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Edgekit-Accepted-Tokens",
    "X-Edgekit-Cached-Tokens",
    "X-Edgekit-Completion-Tokens",
    "X-Edgekit-Drafted-Tokens",
    "X-Edgekit-Ignored",
    "X-Edgekit-Joules",
    "X-Edgekit-Kv-Bytes",
    "X-Edgekit-Left-Out-Messages",
    "X-Edgekit-Prompt-Tokens",
    "X-Request-Id",
    "X-Should-Retry",
)
"""Headers of replies that a page may read, besides those that browsers always let it read."""


def origin_pattern(allowed: Sequence[str]) -> str:
    """Return a regular expression that matches the whole of an allowed `Origin`.

    Args:
        allowed: `https://chat.example`, `http://localhost:*`, `https://*.example`, `app://*`, `null` or `*`.

    Raises:
        ConfigError: One of them is none of these.
    """
    return "|".join(_pattern(origin.lower().rstrip("/")) for origin in allowed) or r"(?!)"


def cors(pattern: str) -> Middleware:
    """Return the middleware that answers preflights and marks replies as readable.

    Args:
        pattern: Regular expression of the allowed origins.
    """
    options: dict[str, Any] = {"allow_origin_regex": f"(?i:{pattern})", "allow_private_network": True}
    return Middleware(
        CORSMiddleware,
        allow_methods=_METHODS,
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=_MAX_AGE_S,
        **options,
    )


def _pattern(origin: str) -> str:
    if origin == "*":
        return ".+"
    if origin == "null":
        return "null"
    found = _ORIGIN.fullmatch(origin if not origin.endswith(":/") else f"{origin}/*")
    if found is None:
        raise ConfigError(
            f"`http.allowed_origins`: `{origin}` is not an origin",
            hint="write it as https://chat.example, http://localhost:*, https://*.example, app://*, null or *",
        )
    scheme, host, port = re.escape(found["scheme"]), found["host"], found["port"] or ""
    if host == "*":
        # A scheme of one program, whose pages have names of all kinds.
        return f"{scheme}://[^/]*"
    name = rf"[a-z0-9.-]+\.{re.escape(host[2:])}" if host.startswith("*.") else re.escape(host)
    return f"{scheme}://{name}" + (r"(?::[0-9]+)?" if port == ":*" else re.escape(port))
