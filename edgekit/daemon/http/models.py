"""The endpoints that list and describe the served model in OpenAI's API, and the server's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from edgekit.daemon.api.served_model import find_name
from edgekit.generation.model import ModelInfo

if TYPE_CHECKING:
    from edgekit.daemon.api.openai_types import ModelBody, ModelList

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

    async def root(self, _: Request) -> Response:
        """Answer `GET /`: Ollama's program asks for it first, and gives up at any other status than 200."""
        return PlainTextResponse("edgekit is running\n")

    async def list_models(self, _: Request) -> Response:
        """Answer `GET /v1/models`."""
        info = self._served()
        listed: ModelList = {"object": "list", "data": _openai_list(info)}
        return JSONResponse(listed)

    async def retrieve(self, request: Request) -> Response:
        """Answer `GET /v1/models/NAME`."""
        info = self._describe()
        return JSONResponse(_openai(info, find_name(request.path_params["name"], info)))


def _openai_list(info: ModelInfo | None) -> list[ModelBody]:
    return [] if info is None else [_openai(info, name) for name in info.names]


def _openai(info: ModelInfo, name: str) -> ModelBody:
    return {
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "edgekit",
        # As in vLLM: the model's own name, which differs for an alias.
        "root": info.name,
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
