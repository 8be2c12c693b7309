"""What clients send is answered, by a model whose template is as strict as Qwen3.5's."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.daemon.http.client_requests import REQUESTS
from tests.scripted import TEMPLATE, scripted_model, serving, tool_call

_LOOP = "{% for message in messages %}"
_STRICT = (
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
)


def _script(prompt: str) -> str:
    return tool_call("weather", '{"city": "Oslo"}') if "Call it" in prompt else "Paris."


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    template = TEMPLATE.replace(_LOOP, _LOOP + _STRICT)
    with (
        serving(scripted_model(_script, template=template, context_length=4096)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def test_the_names_of_ignored_fields_are_few_and_fit_into_a_header(http: httpx.Client) -> None:
    names = ["a\r\nX-Evil: 1", "ü,b", "x" * 500, "", *(f"z{number}" for number in range(1000))]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, **dict.fromkeys(names, 1)}
    shown = http.post("/v1/chat/completions", json=body).raise_for_status().headers["X-Edgekit-Ignored"].split(", ")
    assert shown == ["a??X-Evil:?1", "??b", "x" * 40, '""', "z0", "z1", "z2", "z3"]


@pytest.mark.parametrize("name", REQUESTS)
def test_what_clients_send_is_answered(http: httpx.Client, name: str) -> None:
    sent = REQUESTS[name]
    reply = http.post(sent.path, json=sent.body)
    assert reply.status_code == 200, reply.text
    assert reply.headers.get("X-Edgekit-Ignored", "") == ", ".join(sent.ignored)
