"""The scope that a path needs, and the paths that need no API key."""

from __future__ import annotations

from edgekit.daemon.access.keys import Scope

__all__ = ["is_open", "scope_of"]

# Probes of load balancers and service managers, and what Ollama's program asks for before it sends a key.
_OPEN = frozenset({"/", "/healthz", "/readyz", "/health", "/v1/health"})
_METRICS = ("/metrics", "/slots")
_ADMIN = ("/api/create", "/api/copy", "/api/delete", "/api/push", "/api/blobs", "/admin", "/lora-adapters")
# Reading them is `inference`.
_ADMIN_TO_CHANGE = ("/props",)


def is_open(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in _OPEN


def scope_of(method: str, path: str) -> Scope:
    """Return the scope that a request needs; unknown paths need `inference`.

    Args:
        method: The request's method.
        path: Its decoded path.
    """
    if _below(path, _METRICS):
        return "metrics"
    if _below(path, _ADMIN) or (method not in {"GET", "HEAD"} and _below(path, _ADMIN_TO_CHANGE)):
        return "admin"
    return "inference"


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
