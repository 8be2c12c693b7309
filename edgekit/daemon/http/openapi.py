"""Makes the OpenAPI document of the HTTP server, from the types that its handlers use; imported when it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from edgekit import __version__
from edgekit.daemon.api.anthropic_types import AnthropicError
from edgekit.daemon.api.ollama_types import OllamaError
from edgekit.daemon.api.openai_types import ErrorBody
from edgekit.daemon.http import document_types
from edgekit.daemon.http.errors import STATUS
from edgekit.daemon.http.operations import Operation

__all__ = ["openapi_document"]

_SCHEMAS = "#/components/schemas/{model}"
_ERRORS: dict[str, Any] = {"openai": ErrorBody, "anthropic": AnthropicError, "ollama": OllamaError}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "OpenAI's clients: `Authorization: Bearer KEY`"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "Anthropic's clients"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "Azure's clients"},
}
_DESCRIPTION = (
    "A chat model on an edge device, in the dialects of OpenAI, Anthropic, Ollama, llama-server, vLLM and LM Studio. "
    "Without API keys, which a daemon on loopback may do without, no operation needs one."
)
_STREAMED = {
    "text/event-stream": "each `data` of a streamed reply has this schema, except OpenAI's last one, `[DONE]`",
    "application/x-ndjson": "each line of a streamed reply has this schema",
}

Mode = Literal["validation", "serialization"]
Key = tuple[str, Mode]


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of some operations; their order is kept."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r":\w+}", "}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, path, schemas.of)
    groups = dict.fromkeys(operation.group for operation in operations)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgekit", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": group} for group in groups],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {
                f"{name}_{kind}": _error(schemas.of(type_), kind)
                for name, type_ in _ERRORS.items()
                for kind in ("4XX", "5XX")
            },
            "securitySchemes": _SECURITY,
        },
    }


class _Generator(GenerateJsonSchema):
    """Leaves out titles, which repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


class _Schemas:
    """The JSON schemas of all types of some operations.

    Attributes:
        components: The named ones.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: dict[Any, Mode] = dict.fromkeys(_ERRORS.values(), "serialization")
        for one in operations:
            types |= dict.fromkeys((one.reply, one.stream, one.failure), "serialization")
            types |= dict.fromkeys((query.type for query in one.query), "serialization")
            types[one.body] = "validation"
        inputs = [(type_, mode, _adapter(type_)) for type_, mode in types.items() if type_ is not None]
        found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_SCHEMAS, schema_generator=_Generator)
        components: dict[str, Any] = definitions.get("$defs", {})
        names = _short_names(components)
        self.components = {names[name]: _renamed(schema, names) for name, schema in sorted(components.items())}
        self._found = {type_: _renamed(schema, names) for (type_, _), schema in found.items()}

    def of(self, type_: Any) -> dict[str, Any]:
        """Return the schema of a type."""
        schema: dict[str, Any] = self._found[type_]
        return schema


def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(getattr(document_types, type_) if isinstance(type_, str) else type_)


def _operation(operation: Operation, path: str, schema_of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{re.sub('[^a-z0-9]+', '_', path.lower()).strip('_') or 'root'}",
        "summary": operation.text,
        "tags": [operation.group],
        # `{}`: a daemon on loopback needs no keys.
        "security": [] if operation.scope is None else [{}, *({name: []} for name in _SECURITY)],
    }
    if operation.scope is not None:
        described["description"] = f"Needs the scope `{operation.scope}`."
        described["x-edgekit-scope"] = operation.scope
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {
            "name": query.name,
            "in": "query",
            "required": False,
            "schema": schema_of(query.type),
            "description": query.text,
        }
        for query in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of(operation.body)}},
        }
    described["responses"] = _responses(operation, schema_of)
    return described


def _responses(operation: Operation, schema_of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    errors = {kind: {"$ref": f"#/components/responses/{operation.errors}_{kind}"} for kind in ("4XX", "5XX")}
    if operation.refused:
        return errors if operation.method != "HEAD" else {"404": {"description": "It is not here."}}
    content: dict[str, Any] = {}
    if operation.reply is not None:
        media = "text/plain" if operation.reply == "Text" else "application/json"
        content[media] = {"schema": schema_of(operation.reply)}
    if operation.stream is not None:
        content[operation.stream_type] = {
            "schema": {
                "description": _STREAMED[operation.stream_type],
                "anyOf": [schema_of(operation.stream), schema_of(_ERRORS[operation.errors])],
            }
        }
    replies: dict[str, Any] = {"200": {"description": "The reply.", **({"content": content} if content else {})}}
    if operation.failure is not None:
        media = "text/plain" if operation.failure == "Text" else "application/json"
        replies["503"] = {
            "description": "It is not.",
            "content": {media: {"schema": schema_of(operation.failure)}},
        }
    return {**replies, **errors}


def _error(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    codes: dict[int, list[str]] = {}
    for code, status in sorted(STATUS.items()):
        if str(status)[0] == kind[0]:
            codes.setdefault(status, []).append(f"`{code}`")
    if kind == "4XX":
        codes.setdefault(400, []).append("all other codes")
    else:
        codes.setdefault(500, []).append("a fault of the daemon")
        codes.setdefault(503, []).extend(["`not_ready`", "`shutting_down`"])
    listed = "; ".join(f"{status} {HTTPStatus(status).phrase}: {', '.join(codes[status])}" for status in sorted(codes))
    retry = {
        "description": "Seconds after which the request may succeed; with 429, and with 503 if it can.",
        "schema": {"type": "integer", "minimum": 0},
    }
    return {
        "description": f"An error. {listed}.",
        "headers": {"Retry-After": retry},
        "content": {"application/json": {"schema": schema}},
    }


def _short_names(definitions: Iterable[str]) -> dict[str, str]:
    """Return short names: pydantic writes the whole module of classes with the same name."""
    short: dict[str, str] = {}
    for name in sorted(definitions):
        module, _, last = name.rpartition("__")
        place = module.rpartition("__")[2].strip("_").title().replace("_", "") if module else ""
        wanted = last.strip("_")
        short[name] = wanted if wanted not in short.values() and not place else f"{place}{wanted}"
    if len(set(short.values())) != len(short):
        raise AssertionError(f"two types have the same name in the document: {sorted(short.values())}")
    return short


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Return a schema whose references have the short names."""
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _renamed(item, names) for name, item in value.items()}
    reference = found.get("$ref")
    if isinstance(reference, str):
        before, _, last = reference.rpartition("/")
        found["$ref"] = f"{before}/{names.get(last, last)}"
    return found
