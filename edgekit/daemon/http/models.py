"""The one model that is served, as each dialect lists and shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit import __version__
from edgekit.daemon.wire import printable
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

__all__ = ["Models", "check_model", "ollama_name", "rfc3339"]


def check_model(named: str | None, info: ModelInfo) -> None:
    """Raise `model_not_found` if a caller names another model than the one that is here."""
    if named is not None and named not in {info.name, ollama_name(info)}:
        raise RequestError(
            f"there is no model `{printable(named)}` here",
            hint=f"this daemon serves `{info.name}`",
            code="model_not_found",
            param="model",
        )


def ollama_name(info: ModelInfo) -> str:
    """Return the model's name as Ollama's callers expect it: with a tag."""
    return info.name if ":" in info.name else f"{info.name}:latest"


def rfc3339(seconds: float) -> str:
    """Return a time since the epoch as text, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


class Models:
    """The endpoints.

    Args:
        served: Gives the model; None while it loads.
        describe: Gives the model, or raises `not_ready`.
    """

    def __init__(self, served: Callable[[], ModelInfo | None], describe: Callable[[], ModelInfo]) -> None:
        self._served = served
        self._describe = describe

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/models", self._list, methods=["GET"]),
            # Names may hold slashes.
            Route("/v1/models/{name:path}", self._retrieve, methods=["GET"]),
            Route("/api/tags", self._tags, methods=["GET"]),
            Route("/api/ps", self._running, methods=["GET"]),
            Route("/api/version", self._version, methods=["GET"]),
        ]

    async def _list(self, _: Request) -> Response:
        info = self._served()
        return JSONResponse({"object": "list", "data": [] if info is None else [_openai(info)]})

    async def _retrieve(self, request: Request) -> Response:
        info = self._describe()
        check_model(request.path_params["name"], info)
        return JSONResponse(_openai(info))

    async def _tags(self, _: Request) -> Response:
        info = self._served()
        return JSONResponse({"models": [] if info is None else [_ollama(info)]})

    async def _running(self, _: Request) -> Response:
        info = self._served()
        if info is None:
            return JSONResponse({"models": []})
        model = _ollama(info)
        del model["modified_at"]
        # It stays as long as the daemon does.
        kept = {"expires_at": rfc3339(253402300799), "size_vram": 0, "context_length": info.context_length}
        return JSONResponse({"models": [{**model, **kept}]})

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": __version__})


def show(info: ModelInfo) -> dict[str, Any]:
    """Return what Ollama's `/api/show` says of the model."""
    family = info.architecture or "unknown"
    facts: dict[str, Any] = {"general.architecture": family, f"{family}.context_length": info.context_length}
    if info.parameters:
        facts["general.parameter_count"] = info.parameters
    return {
        "modified_at": rfc3339(info.created),
        "details": _details(info),
        "model_info": facts,
        "capabilities": list(info.capabilities),
    }


def _openai(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "edgekit",
        "context_length": info.context_length,
    }


def _ollama(info: ModelInfo) -> dict[str, Any]:
    name = ollama_name(info)
    return {
        "name": name,
        "model": name,
        "modified_at": rfc3339(info.created),
        "size": info.size_bytes,
        # Callers cut it to its first characters: it only has to differ between models.
        "digest": hashlib.sha256(f"{info.name}\n{info.created}".encode()).hexdigest(),
        "details": _details(info),
    }


def _details(info: ModelInfo) -> dict[str, Any]:
    families = [info.architecture] if info.architecture else []
    return {
        "parent_model": "",
        "format": info.format,
        "family": info.architecture,
        "families": families,
        "parameter_size": _count(info.parameters),
        "quantization_level": "",
    }


def _count(parameters: int) -> str:
    """134515008 as 134.5M."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters) if parameters else ""
