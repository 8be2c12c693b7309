"""The OpenAPI document, by a validator of others, and requests that schemathesis makes from it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.scripted import scripted_model, serving, tool_call

pytestmark = pytest.mark.clients


def found_by(client_python: ClientPython, cases: int) -> dict[str, Any]:
    """Return what the program finds, with so many requests for each operation in both modes."""
    model = scripted_model(
        lambda prompt: tool_call("weather", "{}") if "weather" in prompt else "Paris.", context_length=512
    )
    with serving(model) as server:
        found: dict[str, Any] = client_python("openapi", server.url, cases)
    return found


def test_the_document_is_valid_and_no_request_made_from_it_is_a_server_error(client_python: ClientPython) -> None:
    found = found_by(client_python, 2)
    assert (found["faults"], found["errors"]) == ([], [])
    assert found["cases"] >= 80


@pytest.mark.slow
def test_thousands_of_requests_made_from_the_document_are_no_server_error(client_python: ClientPython) -> None:
    found = found_by(client_python, 60)
    assert found["errors"] == []
    assert found["cases"] >= 2000
    # Not all are refused.
    assert found["statuses"]["200"] >= 200
