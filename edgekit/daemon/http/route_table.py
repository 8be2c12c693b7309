"""The table of all endpoints: the routes and the OpenAPI document are made from it.

Types are named as in `document_types`, which only the document imports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from edgekit.daemon.access.keys import Scope
from edgekit.daemon.http import anthropic, llama_server, ollama, ollama_models, utilities
from edgekit.daemon.http.chat import ChatReply
from edgekit.daemon.http.completions import CompletionReply
from edgekit.daemon.http.endpoint import Dialect
from edgekit.daemon.http.json_line import json_line
from edgekit.daemon.http.models import Models
from edgekit.daemon.http.operations import Answer, Errors, Group, Operation, Query
from edgekit.daemon.http.response_routes import Responses

__all__ = ["route_table"]

_NDJSON: Literal["application/x-ndjson"] = "application/x-ndjson"
_ERRORS: Mapping[Group, Errors] = {
    "OpenAI": "openai",
    "Responses": "openai",
    "Anthropic": "anthropic",
    "Ollama": "ollama",
    "Code completion": "openai",
    "Utilities": "openai",
    "LM Studio": "openai",
    "Health and metrics": "openai",
}
_ITEMS = (
    Query("limit", int, "the number of items, at most 100; 20 unless given"),
    Query("order", Literal["asc", "desc"], "`desc` unless given"),
    Query("after", str, "the id of the item after which the list begins"),
)


def route_table(
    endpoint: Callable[[Dialect, Errors], Answer],
    *,
    models: Models,
    ollamas: ollama_models.OllamaModels,
    utility: utilities.Utilities,
    responses: Responses,
    healthz: Answer,
    readyz: Answer,
    metrics: Answer,
) -> list[Operation]:
    """Return all endpoints; of two that match a request, the first one answers it.

    Args:
        endpoint: Returns the handler of a dialect with these errors, which reads a body and may generate.
        models: Handlers of OpenAI's endpoints about models.
        ollamas: Handlers of Ollama's endpoints about models.
        utility: Handlers of llama-server's, vLLM's and LM Studio's endpoints.
        responses: Handlers of the Responses API.
        healthz: Tells whether generation makes progress.
        readyz: Tells whether requests are accepted.
        metrics: Renders the metrics.
    """

    def post(path: str, dialect: Dialect, text: str, group: Group, **types: Any) -> Operation:
        answer = endpoint(dialect, _ERRORS[group])
        return Operation("POST", path, answer, text, group, "inference", _ERRORS[group], **types)

    def get(path: str, answer: Answer, text: str, group: Group, scope: Scope | None, **types: Any) -> Operation:
        return Operation("GET", path, answer, text, group, scope, _ERRORS[group], **types)

    def refused(
        method: Literal["DELETE", "POST"], path: str, message: str, hint: str, *, group: Group, scope: Scope
    ) -> Operation:
        answer = ollama_models.refusing(message, hint)
        return Operation(method, path, answer, f"Refused: {message}", group, scope, _ERRORS[group], refused=True)

    stored = "/v1/responses/{id}"
    table = [
        post(
            "/v1/chat/completions",
            ChatReply,
            "Answer a chat",
            "OpenAI",
            body="ChatBody",
            reply="ChatCompletion",
            stream="ChatChunk",
        ),
        post(
            "/v1/completions",
            CompletionReply,
            "Continue prompts",
            "OpenAI",
            body="CompletionBody",
            reply="Completion",
            stream="CompletionChunk",
        ),
        get("/v1/models", models.list_models, "List the served model", "OpenAI", "inference", reply="Models"),
        # Model names may contain slashes.
        get(
            "/v1/models/{name:path}",
            models.retrieve,
            "Describe the served model",
            "OpenAI",
            "inference",
            reply="Model",
        ),
        post(
            "/v1/responses",
            responses.create,
            "Create a response",
            "Responses",
            body="ResponseBody",
            reply="ResponseObject",
            stream="ResponseEvent",
        ),
        post(
            "/v1/responses/input_tokens",
            responses.count,
            "Count the tokens of a response's input",
            "Responses",
            body="ResponseBody",
            reply="InputTokens",
        ),
        get(
            stored,
            responses.retrieve,
            "Return a stored response",
            "Responses",
            "inference",
            reply="ResponseObject",
            query=(Query("stream", Literal["true", "false"], "`true` is refused"),),
        ),
        Operation(
            "DELETE",
            stored,
            responses.delete,
            "Delete a stored response",
            "Responses",
            "inference",
            "openai",
            reply="DeletedResponse",
        ),
        get(
            f"{stored}/input_items",
            responses.list_items,
            "List the input of a stored response",
            "Responses",
            "inference",
            reply="ItemList",
            query=_ITEMS,
        ),
        Operation(
            "POST",
            f"{stored}/cancel",
            responses.cancel,
            "Refused: no response runs in the background",
            "Responses",
            "inference",
            "openai",
        ),
        post(
            "/v1/messages",
            anthropic.messages_dialect,
            "Answer messages",
            "Anthropic",
            body="MessagesBody",
            reply="MessageBody",
            stream="MessageEvent",
        ),
        post(
            "/v1/messages/count_tokens",
            anthropic.count_dialect,
            "Count the tokens of messages",
            "Anthropic",
            body="MessagesBody",
            reply="TokenCount",
        ),
        post(
            "/api/chat",
            ollama.chat_dialect,
            "Answer a chat",
            "Ollama",
            body="OllamaChatBody",
            reply="OllamaChunk",
            stream="OllamaChunk",
            stream_type=_NDJSON,
        ),
        post(
            "/api/generate",
            ollama.generate_dialect,
            "Answer, continue or complete a prompt",
            "Ollama",
            body="OllamaGenerateBody",
            reply="OllamaChunk",
            stream="OllamaChunk",
            stream_type=_NDJSON,
        ),
        post(
            "/api/show",
            ollama_models.show_dialect,
            "Describe the model",
            "Ollama",
            body="ModelName",
            reply="ShownModel",
        ),
        post(
            "/api/pull",
            ollama_models.pull_dialect,
            "Succeed for the served model",
            "Ollama",
            body="ModelName",
            reply="PullStatus",
            stream="PullStatus",
            stream_type=_NDJSON,
        ),
        get("/api/tags", ollamas.tags, "List the served model", "Ollama", "inference", reply="Tags"),
        get("/api/ps", ollamas.running, "List the loaded model", "Ollama", "inference", reply="RunningList"),
        get(
            "/api/version",
            ollamas.version,
            "Return the level of Ollama's API",
            "Ollama",
            "inference",
            reply="OllamaVersion",
        ),
        Operation(
            "HEAD",
            "/api/blobs/{digest}",
            ollamas.blob,
            "Not found: there are no blobs",
            "Ollama",
            "admin",
            "ollama",
            refused=True,
        ),
        *(
            refused(method, path, message, hint, group="Ollama", scope=scope)
            for path, method, message, hint, scope in ollama_models.REFUSED
        ),
        *(
            refused("POST", path, message, hint, group="OpenAI", scope="inference")
            for path, message, hint in ollama_models.REFUSED_OPENAI
        ),
        post(
            "/completion",
            llama_server.completion_dialect,
            "Continue a prompt, for llama-server's clients",
            "Code completion",
            body="LlamaCompletionBody",
            reply="LlamaReply",
            stream="LlamaEvent",
        ),
        post(
            "/infill",
            llama_server.infill_dialect,
            "Fill in the middle",
            "Code completion",
            body="InfillBody",
            reply="LlamaReply",
            stream="LlamaEvent",
        ),
        post(
            "/tokenize",
            utilities.tokenize,
            "Tokenize a text or a chat",
            "Utilities",
            body="TokenizeBody",
            reply="TokenizedReply",
        ),
        post(
            "/detokenize",
            utilities.detokenize,
            "Return the text of tokens",
            "Utilities",
            body="TokensBody",
            reply="Detokenized",
        ),
        post(
            "/apply-template",
            utilities.apply_template,
            "Return the text of a chat's prompt",
            "Utilities",
            body="ChatBody",
            reply="Rendered",
        ),
        get(
            "/props",
            utility.props,
            "Describe server and model, as llama-server does",
            "Utilities",
            "inference",
            reply="Props",
        ),
        refused(
            "POST",
            "/props",
            "settings cannot be changed over HTTP",
            "change the daemon's configuration",
            group="Utilities",
            scope="admin",
        ),
        get(
            "/slots",
            utility.slots,
            "List the sequence slots",
            "Utilities",
            "metrics",
            reply="Slots",
            query=(Query("fail_on_no_slot", str, "fail if no slot is free"),),
        ),
        get(
            "/tokenizer_info",
            utility.tokenizer_info,
            "Return the tokenizer's settings",
            "Utilities",
            "inference",
            reply="AnyObject",
        ),
        get("/version", utility.version, "Return edgekit's version", "Utilities", "inference", reply="Version"),
        get(
            "/api/v0/models",
            utility.lmstudio_list,
            "List the served model",
            "LM Studio",
            "inference",
            reply="LmStudioList",
        ),
        get(
            "/api/v0/models/{name:path}",
            utility.lmstudio_model,
            "Describe the served model",
            "LM Studio",
            "inference",
            reply="LmStudioModel",
        ),
        get("/", models.root, "Tell that the daemon runs", "Health and metrics", None, reply="Text"),
        *(
            get(
                path,
                utility.health,
                "Tell whether requests are accepted",
                "Health and metrics",
                None,
                reply="Health",
                failure="Health",
            )
            for path in ("/health", "/v1/health")
        ),
        get(
            "/healthz",
            healthz,
            "Tell whether answers make progress",
            "Health and metrics",
            None,
            reply="Text",
            failure="Text",
        ),
        get(
            "/readyz",
            readyz,
            "Tell whether requests are accepted",
            "Health and metrics",
            None,
            reply="Text",
            failure="Text",
        ),
        get("/metrics", metrics, "Return metrics for Prometheus", "Health and metrics", "metrics", reply="Text"),
    ]
    document = _Document(table)
    table.append(
        get("/openapi.json", document.answer, "Return this document", "Utilities", "inference", reply="AnyObject")
    )
    return table


class _Document:
    """Answers `GET /openapi.json`: the document is made when it is first asked for, and kept."""

    def __init__(self, table: list[Operation]) -> None:
        self._table = table
        self._body: bytes | None = None

    async def answer(self, _: Request) -> Response:
        if self._body is None:
            # It takes some tenths of a second: not on the event loop's thread.
            self._body = await asyncio.to_thread(self._make)
        return Response(self._body, media_type="application/json")

    def _make(self) -> bytes:
        from edgekit.daemon.http.openapi import openapi_document

        return json_line(openapi_document(self._table)).encode()
