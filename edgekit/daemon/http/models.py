"""The endpoints that list and describe the served model in OpenAI's API and in Anthropic's, and the server's root.

The two share their paths: Anthropic's clients send the header `anthropic-version`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from edgekit.daemon.api.served_model import find_name
from edgekit.daemon.http.ollama_models import rfc3339
from edgekit.generation.model import ModelInfo

if TYPE_CHECKING:
    from edgekit.daemon.api.anthropic_types import AnthropicModel, AnthropicModels
    from edgekit.daemon.api.openai_types import ModelBody, ModelList

__all__ = ["Models"]

_ANTHROPIC = "anthropic-version"


class Models:
    """The endpoints' handlers.

    Args:
        describe: Returns the model, or raises `not_ready`.
    """

    def __init__(self, describe: Callable[[], ModelInfo]) -> None:
        self._describe = describe

    async def root(self, _: Request) -> Response:
        """Answer `GET /`: Ollama's program asks for it first, and gives up at any other status than 200."""
        return PlainTextResponse("edgekit is running\n")

    async def list_models(self, request: Request) -> Response:
        """Answer `GET /v1/models`.

        Raises:
            UnavailableError: `not_ready`: clients take an empty list for one without models, and do not ask again.
        """
        info = self._describe()
        if _ANTHROPIC in request.headers:
            models: AnthropicModels = {
                "data": [_anthropic(info, name) for name in info.names],
                "has_more": False,
                "first_id": info.names[0],
                "last_id": info.names[-1],
            }
            return JSONResponse(models)
        listed: ModelList = {"object": "list", "data": [_openai(info, name) for name in info.names]}
        return JSONResponse(listed)

    async def retrieve(self, request: Request) -> Response:
        """Answer `GET /v1/models/NAME`."""
        info = self._describe()
        name = find_name(request.path_params["name"], info)
        return JSONResponse(_anthropic(info, name) if _ANTHROPIC in request.headers else _openai(info, name))


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


def _anthropic(info: ModelInfo, name: str) -> AnthropicModel:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": rfc3339(info.created),
        "lifecycle": "active",
        "max_input_tokens": info.context_length,
        "max_tokens": info.context_length,
    }
