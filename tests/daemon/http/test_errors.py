"""HTTP statuses and headers of errors: which of them a client should retry."""

from __future__ import annotations

import pytest

from edgekit.daemon.http.errors import error_response, error_text, http_error
from edgekit.errors import EdgekitError, RequestError, RunnerError, UnavailableError


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (EdgekitError("a fault"), 500, "false"),
        (RunnerError("lost"), 500, "false"),
        (RequestError("wrong"), 400, None),
        (UnavailableError("later", code="not_ready", retry_after_s=1), 503, None),
    ],
)
def test_clients_are_told_not_to_retry_what_would_only_fail_again(
    error: EdgekitError, status: int, retry: str | None
) -> None:
    response = error_response(error)
    assert (response.status_code, response.headers.get("X-Should-Retry")) == (status, retry)


def test_a_refusal_for_now_says_when_to_retry_in_whole_seconds() -> None:
    response = error_response(UnavailableError("full", code="overloaded", retry_after_s=1.2))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "2")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "did you mean `/v1/chat/completions`?"),
        ("/v1/chat/completions/", "did you mean `/v1/chat/completions`?"),
        ("/v1/v1/models", "did you mean `/v1/models`?"),
        ("/models", "did you mean `/v1/models`?"),
        ("/completions", "did you mean `/v1/completions`?"),
        ("/v1/chat/completion", "did you mean `/v1/chat/completions`?"),
        ("/v1/completion", "did you mean `/v1/completions`?"),
        ("/openai/completion", "did you mean `/completion`?"),
        ("/api/generat", "did you mean `/api/generate`?"),
        ("/", "https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md lists the endpoints"),
        ("/v2/models/x", "https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md lists the endpoints"),
        ("/models" * 1000, "https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md lists the endpoints"),
    ],
)
def test_an_unknown_path_is_answered_with_the_one_that_was_meant(path: str, hint: str) -> None:
    served = ["/", "/completion", "/v1/chat/completions", "/v1/completions", "/v1/models", "/api/chat", "/api/generate"]
    error = http_error(404, "GET", path, paths=served)
    assert (error.code, error.hint) == ("not_found", hint)
    assert f"`GET {path[:100]}`" in error.message


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are() -> None:
    error = http_error(405, "PUT", "/v1/models", allowed="GET, HEAD")
    assert (error.code, error.hint) == ("method_not_allowed", "use GET, HEAD")
    assert http_error(405, "PUT", "/v1/models").hint is None
    assert error_response(error).status_code == 405


def test_the_text_of_an_error_has_its_hint_in_brackets() -> None:
    assert error_text(RequestError("wrong", hint="mend it")) == "wrong (mend it)"
    assert error_text(RequestError("wrong")) == "wrong"


def test_only_a_fault_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for error in (RequestError("wrong"), UnavailableError("later", code="not_ready", retry_after_s=1)):
        error_response(error)
    assert caplog.records == []
    error_response(EdgekitError("a fault"))
    assert [record.getMessage() for record in caplog.records] == ["answered 500: a fault"]
