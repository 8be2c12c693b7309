"""Endpoints that plugins of llama-server, vLLM and LM Studio call besides generating: tokens, templates, properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgekit import __version__
from edgekit.daemon.api import check_model, parse_chat
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.served_model import find_name
from edgekit.daemon.api.utilities import read_detokenize, read_tokenize
from edgekit.daemon.http.endpoint import Backend, RequestContext
from edgekit.daemon.http.errors import openai_error
from edgekit.errors import UnavailableError
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.time_limit import TimeLimit

if TYPE_CHECKING:
    from edgekit.daemon.api.utility_types import (
        Detokenized,
        Health,
        LmStudioList,
        LmStudioModel,
        Piece,
        Props,
        Slot,
        Tokenized,
        Version,
        VllmTokenized,
    )

__all__ = ["Utilities", "apply_template", "detokenize", "tokenize"]

# As for a request that is answered.
_ENCODE_S = 20.0


def tokenize(body: bytes, context: RequestContext) -> Response:
    """Answer `POST /tokenize`, with llama-server's fields (`content`) or vLLM's (`prompt` or `messages`)."""
    asked = read_tokenize(body, request_id=context.id)
    check_model(asked.model, context.model)
    text = context.worker.model
    if asked.chat is not None:
        tokens: Sequence[int] = text.encode(asked.chat, TimeLimit(_ENCODE_S)).tokens
    elif asked.add_special:
        tokens = text.tokenizer.encode_text(asked.text) if asked.obey_special else _with_start(text, asked.text)
    else:
        tokens = text.tokenizer.encode(asked.text, obey_special=asked.obey_special)
    if not asked.vllm:
        pieces: list[Piece] = [{"id": token, "piece": _piece(text, token)} for token in tokens] if asked.pieces else []
        plain: Tokenized = {"tokens": pieces if asked.pieces else list(tokens)}
        return JSONResponse(plain)
    strings = [text.tokenizer.text(token) for token in tokens] if asked.pieces else None
    tokenized: VllmTokenized = {
        "count": len(tokens),
        "max_model_len": context.model.context_length,
        "tokens": list(tokens),
        "token_strs": strings,
    }
    return JSONResponse(tokenized)


def detokenize(body: bytes, context: RequestContext) -> Response:
    """Answer `POST /detokenize`; the reply has llama-server's field and vLLM's."""
    asked = read_detokenize(body)
    check_model(asked.model, context.model)
    tokenizer = context.worker.model.tokenizer
    text = tokenizer.decode(asked.tokens, visible=tokenizer.special_ids)
    detokenized: Detokenized = {"content": text, "prompt": text}
    return JSONResponse(detokenized)


def apply_template(body: bytes, context: RequestContext) -> Response:
    """Answer `POST /apply-template`: the text of a chat's prompt."""
    request, options = parse_chat(decode(body), request_id=context.id)
    check_model(options.model, context.model)
    return JSONResponse({"prompt": context.worker.model.render(request)})


class Utilities:
    """The handlers of the endpoints that are asked with GET.

    Args:
        backend: Returns worker and model, or raises `not_ready`.
        problem: Returns what is wrong with the daemon; None if it is healthy.
    """

    def __init__(self, backend: Backend, problem: Callable[[], str | None]) -> None:
        self._backend = backend
        self._problem = problem

    async def health(self, _: Request) -> Response:
        """Answer `GET /health`."""
        problem = self._problem()
        if problem is None:
            healthy: Health = {"status": "ok"}
            return JSONResponse(healthy)
        error = UnavailableError(problem, hint="retry in a moment", code="not_ready", retry_after_s=5.0)
        # llama-server's clients read the status from the body too.
        unhealthy: Health = {"status": "error", "error": openai_error(error)["error"]}
        return JSONResponse(unhealthy, 503, {"Retry-After": "5"})

    async def version(self, _: Request) -> Response:
        """Answer `GET /version`."""
        version: Version = {"version": __version__}
        return JSONResponse(version)

    async def props(self, _: Request) -> Response:
        """Answer `GET /props`."""
        worker, info = self._backend()
        model = worker.model
        settings = model.tokenizer_settings
        props: Props = {
            "default_generation_settings": {
                "n_ctx": info.context_length,
                "params": {"n_predict": -1, "temperature": 0.0, "seed": -1, "stream": False, **_params(info)},
            },
            "total_slots": model.runner.limits.sequence_slots,
            "model_alias": info.name,
            # llama-server's is a path of the server, which is none of its clients' business.
            "model_path": info.name,
            "modalities": {"vision": False, "audio": False},
            "chat_template": info.template,
            "chat_template_caps": {"supports_tools": "tools" in info.capabilities},
            "bos_token": _special(settings, "bos_token"),
            "eos_token": _special(settings, "eos_token"),
            "build_info": f"edgekit {__version__}",
            "is_sleeping": False,
        }
        return JSONResponse(props)

    async def slots(self, request: Request) -> Response:
        """Answer `GET /slots`."""
        worker, info = self._backend()
        count, running = worker.model.runner.limits.sequence_slots, worker.stats().running
        if request.query_params.get("fail_on_no_slot") and running >= count:
            raise UnavailableError("no slot is free", hint="ask again", code="not_ready", retry_after_s=1.0)
        # Which slot a sequence has changes at any time; only their number means something.
        slots: list[Slot] = [
            {"id": slot, "n_ctx": info.context_length, "is_processing": slot < running} for slot in range(count)
        ]
        return JSONResponse(slots)

    async def tokenizer_info(self, _: Request) -> Response:
        """Answer `GET /tokenizer_info`."""
        worker, info = self._backend()
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **worker.model.tokenizer_settings}
        return JSONResponse({**settings, "chat_template": info.template or None})

    async def lmstudio_list(self, _: Request) -> Response:
        """Answer `GET /api/v0/models`."""
        info = self._backend()[1]
        listed: LmStudioList = {"object": "list", "data": [_lmstudio(info, name) for name in info.names]}
        return JSONResponse(listed)

    async def lmstudio_model(self, request: Request) -> Response:
        """Answer `GET /api/v0/models/NAME`."""
        _, info = self._backend()
        return JSONResponse(_lmstudio(info, find_name(request.path_params["name"], info)))


def _lmstudio(info: ModelInfo, name: str) -> LmStudioModel:
    return {
        "id": name,
        "object": "model",
        "type": "llm",
        "publisher": "edgekit",
        "arch": info.architecture,
        "compatibility_type": info.format,
        "quantization": f"{info.bits}bit" if info.bits else "",
        "state": "loaded",
        "max_context_length": info.context_length,
        "loaded_context_length": info.context_length,
        "capabilities": ["tool_use"] if "tools" in info.capabilities else [],
    }


def _params(info: ModelInfo) -> dict[str, float]:
    """The model's own sampling defaults, by llama.cpp's names."""
    names = {"repetition_penalty": "repeat_penalty"}
    return {names.get(name, name): value for name, value in info.sampling.items()}


def _special(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def _with_start(text: TextModel, content: str) -> list[int]:
    return [*text.tokenizer.encode_text(""), *text.tokenizer.encode(content, obey_special=False)]


def _piece(text: TextModel, token: int) -> str | list[int]:
    """Return a token's text; its bytes if they are not whole characters."""
    data = text.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
