"""openai's newest client, chatting; `tests/daemon/http/test_chat.py` has the details, with the version in .venv."""

from __future__ import annotations

import pytest

from tests.clients.conftest import ClientPython
from tests.scripted import scripted_model, serving, tool_call

pytestmark = pytest.mark.clients


def test_openais_newest_client_chats_streams_calls_and_sees_errors(client_python: ClientPython) -> None:
    model = scripted_model(lambda prompt: tool_call("weather", "{}") if "weather" in prompt else "Paris.")
    with serving(model) as server:
        found = client_python("openai_chat", server.url)
    assert found == {
        "text": "Paris.",
        "streamed": "Paris.",
        "called": ["tool_calls", "weather"],
        "error": "model_not_found",
    }
