"""Tool calls through the engine: held to their schemas, and cut off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.tools import find_format
from edgekit.generation.types import (
    ChatRequest,
    Delta,
    Finished,
    Message,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCallDelta,
    ToolChoice,
)
from tests.generation.bundles import tiny_bundle
from tests.generation.tiny import echo_model
from tests.generation.tools.events import CITY
from tests.generation.tools.test_find_format import HERMES
from tests.models import CHATML

SOURCE = f"{{% if false %}}{HERMES}{{% endif %}}{CHATML}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WEATHER = Tool("weather", parameters=CITY)
CHOICES = (ToolChoice(), ToolChoice("required"), ToolChoice("required", "weather"))


def _model(answer: str) -> TextModel:
    return replace(echo_model(answer), template=ChatTemplate(SOURCE), tool_format=find_format(SOURCE, {}))


def _request(**fields: Any) -> ChatRequest:
    return ChatRequest("r", messages=(Message("user", "Paris?"),), **fields)


def _ask(model: TextModel, **fields: Any) -> tuple[str, str, str]:
    """Text, arguments of the calls, finish reason."""
    events = list(generate(model, _request(**fields)))
    assert isinstance(events[-1], Finished), events[-1]
    text = "".join(event.text for event in events if isinstance(event, Delta))
    return text, "".join(e.arguments for e in events if isinstance(e, ToolCallDelta)), events[-1].reason


def test_a_call_is_held_to_its_schema_without_strict(tmp_path: Path) -> None:
    model = load_model(tiny_bundle(tmp_path, "onnx", template=SOURCE), threads=1)
    answers = {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}}
    tool = Tool("weather", parameters={"type": "object", "properties": answers, "required": ["city", "sure"]})
    # Random weights obey nothing but the grammar.
    for seed in range(6):
        for choice in CHOICES[1:]:
            sampling = Sampling(temperature=1.5, seed=seed)
            text, called, reason = _ask(
                model, tools=(tool,), tool_choice=choice, sampling=sampling, parallel_tool_calls=False
            )
            assert (text, reason) == ("", "tool_calls")
            read = json.loads(called)
            assert (set(read), read["city"] in {"Paris", "Rome"}, type(read["sure"])) == ({"city", "sure"}, True, bool)
    model.close()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_opening_of_a_call_is_never_text_wherever_max_tokens_cuts_it(choice: ToolChoice) -> None:
    model = _model(CALL)
    for size in range(1, len(CALL)):
        text, called, reason = _ask(model, tools=(WEATHER,), tool_choice=choice, max_tokens=size)
        assert '{"city": "Paris"}'.startswith(called)
        assert reason == "length"
        # With `auto` the first characters may still become other text.
        assert text == "" or (choice.mode == "auto" and "<tool_call>".startswith(text) and text != "<tool_call>")
    assert _ask(model, tools=(WEATHER,), tool_choice=choice) == ("", '{"city": "Paris"}', "tool_calls")


@pytest.mark.parametrize("schema", [{"required": ["a", "a", {}]}, {"type": "object", "required": [[]], "enum": [{}]}])
def test_a_malformed_schema_is_the_requests_fault_or_not_enforced(schema: dict[str, Any]) -> None:
    model = _model(CALL)
    with pytest.raises(RequestError):
        model.prepare(_request(response_format=ResponseFormat("json_schema", schema)))
    with pytest.raises(RequestError):
        model.prepare(_request(tools=(Tool("f", parameters=schema, strict=True),)))


def test_schemas_that_are_too_complex_together_are_enforced_for_strict_tools_only() -> None:
    large = {"type": "object", "properties": {"x": {"enum": ["x" * 40 + str(number) for number in range(200)]}}}
    tools = (*(Tool(f"tool_{number}", parameters=large) for number in range(30)), replace(WEATHER, strict=True))
    text, called, _ = _ask(_model(CALL.replace("weather", "tool_7").replace("city", "x")), tools=tools)
    assert (text, called) == ("", '{"x": "Paris"}')
    with pytest.raises(RequestError) as caught:
        _model(CALL).prepare(_request(tools=tuple(replace(tool, strict=True) for tool in tools)))
    assert caught.value.code == "schema_too_complex"
