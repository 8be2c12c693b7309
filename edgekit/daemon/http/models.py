"""The endpoints that list and describe the served model, in both APIs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgekit import __version__
from edgekit.daemon.api import check_model
from edgekit.daemon.api.served_model import ollama_name
from edgekit.generation.model import ModelInfo

__all__ = ["Models", "rfc3339", "show"]


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as an RFC 3339 timestamp in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


class Models:
    """The endpoints' handlers.

    Args:
        served: Returns the model; None while it loads.
        describe: Returns the model, or raises `not_ready`.
    """

    def __init__(self, served: Callable[[], ModelInfo | None], describe: Callable[[], ModelInfo]) -> None:
        self._served = served
        self._describe = describe

    def routes(self) -> list[Route]:
        """Return the routes of the endpoints."""
        return [
            # Ollama's program asks for it first, and gives up at any other status than 200.
            Route("/", self._root, methods=["GET"]),
            Route("/v1/models", self._list, methods=["GET"]),
            # Model names may contain slashes.
            Route("/v1/models/{name:path}", self._retrieve, methods=["GET"]),
            Route("/api/tags", self._tags, methods=["GET"]),
            Route("/api/ps", self._running, methods=["GET"]),
            Route("/api/version", self._version, methods=["GET"]),
        ]

    async def _root(self, _: Request) -> Response:
        return PlainTextResponse("edgekit is running\n")

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
        # The model stays loaded as long as the daemon runs.
        loaded = {"expires_at": rfc3339(253402300799), "size_vram": 0, "context_length": info.context_length}
        return JSONResponse({"models": [{**model, **loaded}]})

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": __version__})


def show(info: ModelInfo) -> dict[str, Any]:
    """Return the body of Ollama's `/api/show`."""
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
        # Clients show its first characters only: it just has to differ between models.
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
