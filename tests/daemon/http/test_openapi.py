"""The OpenAPI document: it has every route, and real requests and replies of every endpoint are as it says."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.responses import Response

from edgekit.config import HttpConfig
from edgekit.daemon.http import server as module
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from tests.daemon.access.served import guarded
from tests.generation.filling import fill_model
from tests.scripted import scripted_model, serving, tool_call

ROOT = Path(__file__).parents[3]
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
# Replies that have more than is documented: the request's settings, and the facts about a model.
OPEN = {"ResponseObject", "ErrorDetails"}


def script(prompt: str) -> str:
    if "weather" in prompt:
        return f"<think>\nHm.\n</think>\n\nLet me see.{tool_call('weather', '{}')}"
    return "Paris."


class Documented:
    """Sends requests, and compares requests and replies with the document."""

    def __init__(self, http: httpx.Client, seen: set[tuple[str, str, str]]) -> None:
        self._http = http
        self._seen = seen
        self.document = http.get("/openapi.json").raise_for_status().json()
        # A reply has nothing that is not documented.
        self._strict = json.loads(json.dumps(self.document))
        for name, schema in self._strict["components"]["schemas"].items():
            if schema.get("type") == "object" and name not in OPEN:
                schema.setdefault("additionalProperties", False)

    def send(
        self, method: str, template: str, body: Any = None, status: int = 200, *, path: str = "", refused: bool = False
    ) -> Any:
        """Send a request, and return the reply.

        Args:
            method: The method.
            template: The path in the document.
            body: The body.
            status: The status that is expected.
            path: The path, if it has parameters.
            refused: The document does not allow the body.
        """
        found = self.document["paths"][template][method.lower()]
        if body is not None:
            schema = found["requestBody"]["content"]["application/json"]["schema"]
            assert self._is_valid(self.document, schema, body) != refused, body
        response = self._http.request(method, path or template, json=body)
        assert response.status_code == status, response.text
        replies = found["responses"]
        described = replies.get(str(status)) or replies[f"{status // 100}XX"]
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rpartition("/")[2]]
        if method == "HEAD":
            return response
        kind = response.headers["content-type"].partition(";")[0]
        self._seen.add((method, template, kind if status < 300 else f"{status // 100}XX"))
        schema = described["content"][kind]["schema"]
        for value in _values(response, kind):
            self._check(schema, value)
        return response

    def _check(self, schema: Any, value: Any) -> None:
        errors = list(_validator(self._strict, schema).iter_errors(value))
        assert not errors, f"{json.dumps(value)[:2000]}: {[error.message for error in errors]}"

    def _is_valid(self, document: Any, schema: Any, value: Any) -> bool:
        return bool(_validator(document, schema).is_valid(value))


def _validator(document: Any, schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def _values(response: httpx.Response, kind: str) -> list[Any]:
    if kind == "text/plain":
        return [response.text]
    if kind == "application/json":
        return [response.json()]
    lines = response.text.splitlines()
    if kind == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in lines if line.startswith("data: ") and "[DONE]" not in line]
    assert lines
    return [json.loads(line) for line in lines]


@pytest.fixture
def seen() -> set[tuple[str, str, str]]:
    """What was sent: method, path, and the media type of the reply or the kind of its error."""
    return set()


@pytest.fixture
def documented(seen: set[tuple[str, str, str]]) -> Iterator[tuple[Documented, Documented]]:
    """A daemon whose model calls tools and reasons, and one whose model fills in the middle."""
    with ExitStack() as stack:
        models = (scripted_model(script), fill_model("a + b<|file_sep|>"))
        servers = [stack.enter_context(serving(model)) for model in models]
        https = [stack.enter_context(httpx.Client(base_url=server.url, timeout=30)) for server in servers]
        yield Documented(https[0], seen), Documented(https[1], seen)


def test_requests_and_replies_of_every_endpoint_are_as_the_document_says(
    documented: tuple[Documented, Documented], seen: set[tuple[str, str, str]]
) -> None:
    daemon, coder = documented
    send = daemon.send
    calling = {"messages": [{"role": "user", "content": [{"type": "text", "text": "weather"}]}]}
    for stream in (False, True):
        for more in (HI, {**calling, "tools": [TOOL]}, {**HI, "logprobs": True, "top_logprobs": 2, "n": 2}):
            body = {**more, "stream": stream, "stop": "\n\n\n", "user": "me", "min_tokens": 0}
            send(
                "POST",
                "/v1/chat/completions",
                {**body, **({"stream_options": {"include_usage": True}} if stream else {})},
            )
        for prompt in ("Once", ["a", "b"], [72, 105]):
            send("POST", "/v1/completions", {"prompt": prompt, "logprobs": 1, "echo": True, "stream": stream})
        for given in (
            {"input": "Hi"},
            {"input": "weather", "tools": [{"type": "function", "name": "weather", "parameters": {}}]},
        ):
            reply = send(
                "POST", "/v1/responses", {**given, "stream": stream, "include": ["reasoning.encrypted_content"]}
            )
        anthropic = {"model": "scripted", "max_tokens": 900, "stream": stream}
        send("POST", "/v1/messages", {**anthropic, **HI})
        tool = {"name": "weather", "input_schema": {"type": "object"}}
        send("POST", "/v1/messages", {**anthropic, **calling, "tools": [tool]})
        ollama = {"model": "scripted", "stream": stream}
        send("POST", "/api/chat", {**ollama, **HI, "logprobs": True})
        send("POST", "/api/chat", {**ollama, "messages": [{"role": "user", "content": "weather"}], "tools": [TOOL]})
        send("POST", "/api/chat", ollama)
        send("POST", "/api/generate", {**ollama, "prompt": "Hi"})
        send("POST", "/api/generate", ollama)
        send("POST", "/api/pull", ollama)
        send("POST", "/completion", {"prompt": "Once", "stream": stream, "n_predict": 4})
        gap = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n", "input_extra": [{"text": "x"}]}
        coder.send("POST", "/infill", {**gap, "stream": stream})
    coder.send("POST", "/infill", {**gap, "n_cmpl": 2})
    send("POST", "/completion", {"prompt": "Once", "n_cmpl": 2, "n_predict": 4})
    response = send("POST", "/v1/responses", {"input": "Hi", "instructions": "Be brief."}).json()["id"]
    place, at = "/v1/responses/{id}", f"/v1/responses/{response}"
    assert reply.status_code == 200
    send("POST", "/v1/responses/input_tokens", {"input": "Hi"})
    send("GET", place, path=at)
    send("GET", f"{place}/input_items", path=f"{at}/input_items?limit=1&order=asc")
    send("POST", f"{place}/cancel", path=f"{at}/cancel", status=400)
    send("DELETE", place, path=at)
    send("GET", place, path=at, status=404)
    send("POST", "/v1/messages/count_tokens", {"model": "scripted", **HI})
    for body in (
        {"content": "Hi"},
        {"content": "Hü", "with_pieces": True},
        {"prompt": "Hi", "return_token_strs": True},
        HI,
    ):
        send("POST", "/tokenize", body)
    send("POST", "/detokenize", {"tokens": [72, 105]})
    send("POST", "/apply-template", HI)
    send("POST", "/api/show", {"model": "scripted"})
    for path in ("/v1/models/{name}", "/api/v0/models/{name}"):
        send("GET", path, path=path.replace("{name}", "scripted"))
        send("GET", path, path=path.replace("{name}", "no/such"), status=404)
    for path, operations in daemon.document["paths"].items():
        if "get" in operations and "{" not in path:
            send("GET", path)
        for method, operation in operations.items():
            replies = operation["responses"]
            if operation["summary"].startswith("Refused: ") and "200" not in replies:
                send(method.upper(), path, path=path.replace("{digest}", "sha256:0"), status=501)
            if "requestBody" in operation:
                send(method.upper(), path, [], status=400, refused=True)
    send("HEAD", "/api/blobs/{digest}", path="/api/blobs/sha256:0", status=404)

    expected = {
        (method.upper(), path, media)
        for path, operations in daemon.document["paths"].items()
        for method, operation in operations.items()
        for media in operation["responses"].get("200", {}).get("content", {})
        if "cancel" not in path
    }
    assert expected - seen == set()


def test_errors_before_the_model_is_loaded_are_documented_too(seen: set[tuple[str, str, str]]) -> None:
    server = HttpServer(HttpConfig(port=0), None, None, Metrics())
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            loading = Documented(http, seen)
            for path in ("/health", "/v1/health", "/readyz", "/props"):
                loading.send("GET", path, status=503)
            for path, body in (("/v1/chat/completions", HI), ("/api/chat", {"model": "x", **HI})):
                loading.send("POST", path, body, status=503)
            loading.send("POST", "/v1/messages", {"model": "x", "max_tokens": 9, **HI}, status=503)
    finally:
        server.stop()


def test_a_route_without_an_entry_in_the_document_cannot_exist() -> None:
    server = HttpServer(HttpConfig(port=0), None, None, Metrics())
    served = {
        (re.sub(r":\w+}", "}", route.path), method)  # type: ignore[attr-defined]
        for route in server._application().routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    server.start()
    try:
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    finally:
        server.stop()
    described = {(path, method.upper()) for path, operations in paths.items() for method in operations}
    assert served == described - {("/api/blobs/{digest}", "HEAD")}
    names = [one["operationId"] for operations in paths.values() for one in operations.values()]
    assert len(names) == len(set(names))
    # Routes are made from the table, and in no other way.
    making = [
        path.name
        for path in (ROOT / "edgekit/daemon").rglob("*.py")
        if re.search(r"\b(Route|Mount|add_route|route)\(", path.read_text(encoding="utf-8"))
    ]
    assert sorted(making) == ["operations.py", "server.py"]
    assert "routes=[operation.route() for operation in operations]" in Path(module.__file__).read_text(encoding="utf-8")


# Why a schema allows anything, by the name of its field.
ANYTHING = {
    **dict.fromkeys(
        ("format", "guided_json", "input_schema", "json", "json_schema", "parameters", "schema"), "a JSON schema"
    ),
    **dict.fromkeys(("arguments", "input"), "arguments of a tool"),
    "chat_template_kwargs": "variables of the model's template",
    "model_info": "named after the model's architecture",
    "/tokenizer_info": "the tokenizer's own settings",
    "/openapi.json": "this document",
}


def _anything(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of the schemas that allow anything, or any object or list."""
    if isinstance(schema, list):
        for item in schema:
            yield from _anything(item, path)
    elif isinstance(schema, dict):
        said = set(schema) - {"description", "default", "title"}
        kind = schema.get("type")
        extra = schema.get("additionalProperties", True)
        open_object = kind == "object" and not schema.get("properties") and extra is True
        open_list = kind == "array" and not schema.get("items") and schema.get("maxItems") != 0
        if not said or open_object or open_list:
            yield path
        for name in ("items", "additionalProperties", "anyOf", "oneOf", "allOf", "schema"):
            if name in schema and schema[name] is not True:
                yield from _anything(schema[name], path)
        for name, item in schema.get("properties", {}).items():
            yield from _anything(item, (*path, name))


def test_only_what_has_no_form_is_described_as_anything() -> None:
    document = HttpServer(HttpConfig(), None, None, Metrics())._operations()[-1]
    answer = cast("Callable[[object], Coroutine[Any, Any, Response]]", document.answer)
    whole = json.loads(bytes(asyncio.run(answer(None)).body))
    components = whole["components"]["schemas"]
    ignored = {"description": "accepted, and changes nothing"}
    found = {
        path[-1]
        for name, schema in components.items()
        for path in _anything(schema, (name,))
        if len(path) == 1 or components[path[0]]["properties"].get(path[1]) != ignored
    }
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            contents = [content for body in bodies for content in body.get("content", {}).values()]
            found |= {place[-1] for content in contents for place in _anything(content["schema"], (path,))}
    assert found == set(ANYTHING)


def test_the_document_needs_a_key_where_inference_does(tmp_path: Path) -> None:
    with guarded(tmp_path) as served:
        assert served.http.get("/openapi.json").status_code == 401
        assert served.get(served.add("prom", scopes=("metrics",)), "/openapi.json").status_code == 403
        document = served.get(served.add("ann"), "/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key", "api-key"}
    paths = document["paths"]
    scopes = {
        path: paths[path]["get"].get("x-edgekit-scope") for path in ("/metrics", "/slots", "/v1/models", "/healthz")
    }
    assert scopes == {"/metrics": "metrics", "/slots": "metrics", "/v1/models": "inference", "/healthz": None}
    assert paths["/healthz"]["get"]["security"] == []
    assert paths["/api/delete"]["delete"]["x-edgekit-scope"] == "admin"


def test_a_daemon_that_is_not_asked_for_the_document_does_not_import_its_maker() -> None:
    program = (
        "import sys, edgekit.daemon.http.server\n"
        "names = [name for name in sys.modules if name.startswith('edgekit.daemon')]\n"
        "print([name for name in names if name.endswith(('openapi', '_types'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
