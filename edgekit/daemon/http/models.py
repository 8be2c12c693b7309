"""The endpoints that list and describe the served model in OpenAI's API, and the server's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgekit.daemon.api import check_model
from edgekit.generation.model import ModelInfo

__all__ = ["Models"]


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


def _openai(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "edgekit",
        "context_length": info.context_length,
        # vLLM's name of it, and llama-server's facts, by which their plugins know the context length.
        "max_model_len": info.context_length,
        "meta": {
            "n_ctx_train": info.context_length,
            "n_params": info.parameters,
            "n_embd": info.dimensions.get("embedding_length", 0),
            "n_vocab": info.dimensions.get("vocab_size", 0),
            "size": info.size_bytes,
        },
    }
