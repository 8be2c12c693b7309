"""Ollama's endpoints about models: what is served, what it is, and what this daemon does not do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgekit import __version__
from edgekit.daemon.access.keys import Scope
from edgekit.daemon.api import check_model
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.served_model import find_name, tagged
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.json_line import json_line
from edgekit.daemon.http.operations import Answer
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

if TYPE_CHECKING:
    from edgekit.daemon.api.ollama_types import (
        ListedModel,
        ModelDetails,
        OllamaVersion,
        PullStatus,
        RunningModel,
        ShownModel,
        Tags,
    )

__all__ = [
    "OLLAMA_VERSION",
    "REFUSED",
    "REFUSED_OPENAI",
    "OllamaModels",
    "pull_dialect",
    "refusing",
    "rfc3339",
    "show",
    "show_dialect",
]

OLLAMA_VERSION = "0.14.0"
"""The version of Ollama whose API this is: the first with all the endpoints that are served here (`/v1/messages`).

Clients compare it with the oldest version that they support, such as Copilot with 0.6.4.
"""

# Runners that compute in the memory of an accelerator, or in memory that is shared with it.
_ACCELERATORS = ("tensorrt", "mlx")
_NO_EXPIRY_S = 253402300799

_CREATE = "make a bundle with `edgekit export`, and serve it with `edgekit serve`"
_NO_EMBEDDINGS = "this model does not support embeddings"
_EMBED = "serve embeddings with another program: this daemon serves a chat model"
REFUSED: tuple[tuple[str, Literal["DELETE", "POST"], str, str, Scope], ...] = (
    ("/api/create", "POST", "models cannot be created over HTTP", _CREATE, "admin"),
    ("/api/copy", "POST", "models cannot be copied over HTTP", _CREATE, "admin"),
    (
        "/api/delete",
        "DELETE",
        "models cannot be deleted over HTTP",
        "stop the daemon and delete the bundle's folder",
        "admin",
    ),
    ("/api/push", "POST", "models cannot be pushed", "copy the bundle's folder", "admin"),
    ("/api/embed", "POST", _NO_EMBEDDINGS, _EMBED, "inference"),
    ("/api/embeddings", "POST", _NO_EMBEDDINGS, _EMBED, "inference"),
    ("/api/blobs/{digest}", "POST", "models cannot be uploaded over HTTP", _CREATE, "admin"),
)


REFUSED_OPENAI: tuple[tuple[str, str, str], ...] = (
    *((path, _NO_EMBEDDINGS, _EMBED) for path in ("/v1/embeddings", "/embeddings", "/embedding")),
    ("/v1/responses/compact", "histories cannot be compacted", "set `truncation` to `auto`, or leave out old items"),
)
"""The same of OpenAI's API and llama-server's, all with `POST`."""


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as an RFC 3339 timestamp in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def show_dialect(body: bytes, context: RequestContext) -> Response:
    """Parse a body of `/api/show`, and answer it."""
    name = find_name(_name(decode(body)), context.model)
    return JSONResponse(show(context.model, name))


def pull_dialect(body: bytes, context: RequestContext) -> Response:
    """Parse a body of `/api/pull`, and answer it: the served model is here, others cannot be had."""
    fields = decode(body)
    name = _name(fields)
    try:
        check_model(name, context.model)
    except RequestError as error:
        raise RequestError(
            f"{error.message}, and models cannot be pulled",
            hint=f"{error.hint}; {_CREATE}",
            code=error.code,
            param="model",
        ) from error
    if fields.get("stream") is False:
        return JSONResponse({"status": "success"})
    digest, size = f"sha256:{_digest(context.model)}", context.model.size_bytes
    statuses: list[PullStatus] = [
        {"status": "pulling manifest"},
        {"status": f"pulling {digest[7:19]}", "digest": digest, "total": size, "completed": size},
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    return Response("".join(f"{json_line(status)}\n" for status in statuses), media_type="application/x-ndjson")


class OllamaModels:
    """The handlers of the endpoints that have no body, or whose body does not matter.

    Args:
        served: Returns the model; None while it loads.
        describe: Returns the model, or raises `not_ready`.
    """

    def __init__(self, served: Callable[[], ModelInfo | None], describe: Callable[[], ModelInfo]) -> None:
        self._served = served
        self._describe = describe

    async def tags(self, _: Request) -> Response:
        """Answer `GET /api/tags`.

        Raises:
            UnavailableError: `not_ready`: clients take an empty list for one without models, and do not ask again.
        """
        info = self._describe()
        tags: Tags = {"models": [_listed(info, name) for name in info.names]}
        return JSONResponse(tags)

    async def running(self, _: Request) -> Response:
        """Answer `GET /api/ps`: what is in memory, and so nothing while the model loads."""
        info = self._served()
        if info is None:
            return JSONResponse({"models": []})
        model = _listed(info, info.name)
        running: RunningModel = {
            "name": model["name"],
            "model": model["model"],
            "size": model["size"],
            "digest": model["digest"],
            "details": model["details"],
            # The model stays loaded as long as the daemon runs.
            "expires_at": rfc3339(_NO_EXPIRY_S),
            "size_vram": info.size_bytes if info.runner.startswith(_ACCELERATORS) else 0,
            "context_length": info.context_length,
        }
        return JSONResponse({"models": [running]})

    async def version(self, _: Request) -> Response:
        """Answer `GET /api/version`."""
        version: OllamaVersion = {"version": OLLAMA_VERSION, "edgekit": __version__}
        return JSONResponse(version)

    async def blob(self, _: Request) -> Response:
        """Answer `HEAD /api/blobs/DIGEST`, which is asked before an upload: it is not here."""
        return Response(status_code=404)


def show(info: ModelInfo, name: str | None = None) -> ShownModel:
    """Return the body of Ollama's `/api/show`, for the model's name or an alias."""
    family = info.architecture or "unknown"
    facts: dict[str, Any] = {
        "general.architecture": family,
        # Copilot shows it as the model's name.
        "general.basename": info.name,
        f"{family}.context_length": info.context_length,
        **{f"{family}.{name}": size for name, size in info.dimensions.items()},
    }
    if info.parameters:
        facts["general.parameter_count"] = info.parameters
    return {
        "license": info.licence,
        "modelfile": f"# Served by edgekit {__version__}\nFROM {info.name}\n",
        "parameters": _parameters(info),
        "template": _template(info),
        "modified_at": rfc3339(info.created),
        "details": _details(info, name or info.name),
        "model_info": facts,
        "capabilities": list(info.capabilities),
    }


def refusing(message: str, hint: str) -> Answer:
    """Return the handler of what this daemon does not do."""

    async def refuse(_: Request) -> Response:
        raise RequestError(message, hint=hint, code="not_implemented")

    return refuse


def _name(fields: dict[str, Any]) -> str:
    # `name` is the field's older spelling.
    name = fields.get("model") or fields.get("name")
    if not isinstance(name, str):
        raise RequestError("`model` must be a string", param="model")
    return name


def _listed(info: ModelInfo, name: str) -> ListedModel:
    """Return the entry of the model by its name or an alias."""
    return {
        "name": tagged(name),
        "model": tagged(name),
        "modified_at": rfc3339(info.created),
        "size": info.size_bytes,
        "digest": _digest(info),
        "details": _details(info, name),
    }


def _digest(info: ModelInfo) -> str:
    # Clients show its first characters only: it just has to differ between models.
    return hashlib.sha256(f"{info.name}\n{info.created}".encode()).hexdigest()


def _details(info: ModelInfo, name: str) -> ModelDetails:
    families = [info.architecture] if info.architecture else []
    return {
        # Of an alias, the model's own name.
        "parent_model": "" if name == info.name else tagged(info.name),
        "format": info.format,
        "family": info.architecture,
        "families": families,
        "parameter_size": _count(info.parameters),
        "quantization_level": f"INT{info.bits}" if info.bits else "",
    }


def _parameters(info: ModelInfo) -> str:
    """The context length and the model's own sampling defaults, as a Modelfile has them: no line is empty."""
    names = {"repetition_penalty": "repeat_penalty"}
    values: dict[str, object] = {"num_ctx": info.context_length}
    values |= {names.get(name, name): value for name, value in info.sampling.items()}
    return "\n".join(f"{name:<30} {value}" for name, value in values.items())


def _template(info: ModelInfo) -> str:
    """The templates, in Go's syntax around the chat template, which is Jinja.

    Clients search it for the variables that a model takes: Continue fills in the middle if there is a `.Suffix`.
    """
    uses = " and .Tools" if "tools" in info.capabilities else ""
    chat = f"{{{{- /* Jinja, for .Messages{uses} */ -}}}}\n{info.template}" if info.template else "{{ .Prompt }}"
    return (
        f"{{{{- if .Suffix }}}}{info.fill_template}{{{{- else }}}}{chat}{{{{- end }}}}" if info.fill_template else chat
    )


def _count(parameters: int) -> str:
    """134515008 as 134.5M."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters) if parameters else ""
