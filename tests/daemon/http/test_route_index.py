"""What the table of endpoints says about paths, known and unknown."""

from __future__ import annotations

import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.route_index import RouteIndex
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics


@pytest.fixture(scope="module")
def index() -> RouteIndex:
    return RouteIndex(HttpServer(HttpConfig(), None, None, Metrics())._operations())


@pytest.mark.parametrize(
    ("method", "path", "scope", "errors"),
    [
        ("POST", "/v1/chat/completions", "inference", "openai"),
        ("GET", "/v1/models/a/b", "inference", "openai"),
        ("POST", "/v1/embeddings", "inference", "openai"),
        ("POST", "/v1/responses/compact", "inference", "openai"),
        ("POST", "/v1/messages", "inference", "anthropic"),
        ("POST", "/v1/messages/count_tokens", "inference", "anthropic"),
        ("POST", "/api/chat", "inference", "ollama"),
        ("GET", "/api/v0/models", "inference", "openai"),
        ("GET", "/props", "inference", "openai"),
        ("HEAD", "/props", "inference", "openai"),
        ("POST", "/props", "admin", "openai"),
        ("DELETE", "/api/delete", "admin", "ollama"),
        ("POST", "/api/blobs/sha256:0", "admin", "ollama"),
        ("GET", "/metrics", "metrics", "openai"),
        ("HEAD", "/", None, "openai"),
        ("GET", "/healthz", None, "openai"),
        # Not served.
        ("GET", "/api/delete", "admin", "ollama"),
        ("GET", "/slots/1", "metrics", "openai"),
        ("GET", "/healthz/x", "inference", "openai"),
        ("GET", "/healthz/", "inference", "openai"),
        ("GET", "/nowhere", "inference", "openai"),
        ("GET", "", "inference", "openai"),
        ("GET", "//", "inference", "openai"),
        ("POST", "/api/nothing", "inference", "ollama"),
        ("POST", "/api/v0/nothing", "inference", "openai"),
        ("POST", "/v1/messages/batches", "inference", "anthropic"),
    ],
)
def test_a_path_has_a_scope_and_the_errors_of_an_api(
    index: RouteIndex, method: str, path: str, scope: str | None, errors: str
) -> None:
    assert (index.scope(method, path), index.errors(path)) == (scope, errors)
