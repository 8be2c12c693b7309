"""Bodies of the Responses API, the Messages API and completions with parts replaced, dropped and added: no fault."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.scripted import scripted_model, serving, tool_call

ATOMS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 1e308, "", "x", "auto", "none", "<|im_end|>", "é\u2028", "\ud83d"),
    *([], {}, [[]], [{}], {"type": "text"}, {"type": "function"}),
)
KEYS = ("type", "id", "x", "content", "role", "n", "stream", "name", "text")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}

RESPONSE = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ],
    "instructions": "s",
    "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 3,
    "metadata": {"a": "b"},
    "top_logprobs": 1,
    "stream": True,
}
MESSAGES = {
    "model": "scripted",
    "max_tokens": 3,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "x"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
    ],
    "tools": [{"name": "weather", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "stop_sequences": ["x"],
    "stream": True,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": RESPONSE,
    "/v1/responses/input_tokens": RESPONSE,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": {name: value for name, value in MESSAGES.items() if name != "stream"},
    "/v1/completions": {"prompt": [[1, 2], [3]], "max_tokens": 3, "n": 2, "echo": True, "logprobs": 1, "stream": True},
}


def mutated(value: Any, chance: random.Random, rate: float) -> Any:
    if chance.random() < rate:
        return chance.choice(ATOMS)
    if isinstance(value, dict):
        fields = {name: mutated(item, chance, rate) for name, item in value.items()}
        if fields and chance.random() < rate:
            fields.pop(chance.choice(list(fields)))
        if chance.random() < rate:
            fields[chance.choice(KEYS)] = chance.choice(ATOMS)
        return fields
    if isinstance(value, list):
        items = [mutated(item, chance, rate) for item in value]
        return [*items, chance.choice(items)] if items and chance.random() < rate else items
    return value


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_mutated_body_is_a_fault(count: int) -> None:
    chance = random.Random(39)  # noqa: S311  the same bodies every time
    found: Counter[tuple[str, int]] = Counter()
    call = tool_call("weather", '{"city": "Paris"}')
    with serving(scripted_model(call)) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(count):
            path = chance.choice(list(BODIES))
            body = mutated(BODIES[path], chance, chance.choice((0.0, 0.01, 0.05, 0.2)))
            reply = http.post(path, content=json.dumps(body))
            found[path, reply.status_code] += 1
            assert reply.status_code in {200, 400, 404}, (path, body, reply.text)
            if reply.status_code != 200:
                error = reply.json()["error"]
                assert error["message"], (path, body)
                assert error["code"] not in {"internal_error", "error"}, (path, body, error)
            elif "event-stream" in reply.headers["content-type"]:
                assert "internal" not in reply.text, (path, body, reply.text)
    for path in BODIES:
        assert found[path, 200] > count / 100, found
        assert found[path, 400] > count / 100, found
