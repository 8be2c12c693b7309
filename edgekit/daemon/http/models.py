"""The endpoints that list and describe the served model in OpenAI's API, and the server's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from edgekit.daemon.api import check_model
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
        listed: ModelList = {"object": "list", "data": [] if info is None else [_openai(info)]}
        return JSONResponse(listed)

    async def retrieve(self, request: Request) -> Response:
        """Answer `GET /v1/models/NAME`."""
        info = self._describe()
        check_model(request.path_params["name"], info)
        return JSONResponse(_openai(info))


def _openai(info: ModelInfo) -> ModelBody:
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
