"""Reasoning is separated from the answer, with tools and without, unless the request asks for it inline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.tools import find_format, find_reasoning
from edgekit.generation.tools.qwen3 import Qwen3
from edgekit.generation.types import ChatRequest, Delta, Finished, Message, ResponseFormat, Tool, ToolChoice
from tests.generation.bundles import tiny_bundle
from tests.generation.tiny import echo_model
from tests.generation.tools.test_find_format import QWEN3
from tests.models import CHATML
from tests.scripted import scripted_model

# Its last character might be extended by a combining one: it is complete only once the tag comes.
THOUGHTS = "\nIs it 4"
ANSWER = "Paris, No. 4"
WRITTEN = f"<think>{THOUGHTS}</think>\n\n{ANSWER}"
# A reasoning model without tools; its template opens the reasoning.
REASONER = CHATML.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}"
# The format is detected in the template's source; it renders ChatML.
QWEN3_SOURCE = f"{{% if false %}}{QWEN3}{{% endif %}}"
TEMPLATES = {"qwen3": QWEN3_SOURCE + CHATML, "reasoner": REASONER}


def _model(template: str, answer: str = WRITTEN) -> TextModel:
    model = echo_model(answer)
    return replace(
        model,
        template=ChatTemplate(template),
        tool_format=find_format(template, {}),
        reasoning=find_reasoning(template, {}),
    )


def _ask(model: TextModel, **fields: Any) -> tuple[str, str]:
    """Reasoning and answer."""
    text = {True: "", False: ""}
    fields.setdefault("messages", (Message("user", "Hello"),))
    events = list(generate(model, ChatRequest("r", **fields)))
    assert isinstance(events[-1], Finished), events[-1]
    for event in events:
        if isinstance(event, Delta):
            text[event.reasoning] += event.text
    return text[True], text[False]


def test_reasoning_is_separated_without_tools_where_the_prompt_does_not_open_it() -> None:
    assert _ask(_model(TEMPLATES["qwen3"])) == (THOUGHTS, ANSWER)


def test_reasoning_that_the_prompt_opens_is_separated_with_tool_calling_or_without() -> None:
    for tools in ("", QWEN3_SOURCE):
        assert _ask(_model(tools + REASONER)) == (THOUGHTS.lstrip(), ANSWER)


def test_inline_reasoning_is_left_in_the_text_as_written() -> None:
    assert _ask(_model(TEMPLATES["qwen3"]), reasoning="inline") == ("", WRITTEN)
    assert _ask(_model(REASONER), reasoning="inline") == ("", WRITTEN.removeprefix("<think>\n"))


def test_reasoning_is_separated_with_tools_as_without() -> None:
    tools = (Tool("now"),)
    none = ToolChoice("none")
    assert _ask(_model(TEMPLATES["qwen3"]), tools=tools) == (THOUGHTS, ANSWER)
    assert _ask(_model(TEMPLATES["qwen3"]), tools=tools, tool_choice=none) == (THOUGHTS, ANSWER)
    # With `tool_choice` none, `tools` are accepted even if the model cannot call them.
    assert _ask(_model(REASONER), tools=tools, tool_choice=none) == (THOUGHTS.lstrip(), ANSWER)


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_an_answer_without_reasoning_is_complete(template: str) -> None:
    answer = "<think>\n</think>Look:\n```json\n{}" if template == REASONER else "Look:\n```json\n{}"
    assert _ask(_model(template, answer)) == ("", answer.rpartition(">")[2])


def test_tags_are_text_without_a_reasoning_template_and_in_a_text_completion() -> None:
    assert _ask(_model(CHATML)) == ("", WRITTEN)
    prompt = "<|im_start|>assistant\n<think>"
    # As plain text, the start of a turn is not one: the output is arbitrary, and none of it is reasoning.
    model = _model(TEMPLATES["qwen3"])
    assert _ask(model, prompt=prompt, messages=(), max_tokens=3)[0] == ""


def test_a_response_format_covers_the_entire_output_unless_the_prompt_opens_the_reasoning() -> None:
    choice = ResponseFormat("choice", ("yes", "no"))
    assert _ask(_model(TEMPLATES["qwen3"], "yes"), response_format=choice) == ("", "yes")
    assert _ask(_model(REASONER, "<think>\nHm.</think>\n\nno"), response_format=choice) == ("Hm.", "no")
    grammar = ResponseFormat("grammar", 'start: "yes"')
    assert _ask(_model(TEMPLATES["qwen3"], "yes"), response_format=grammar) == ("", "yes")
    with pytest.raises(RequestError, match="reasoning") as caught:
        _model(REASONER).prepare(ChatRequest("r", (Message("user", "Hi"),), response_format=grammar))
    assert caught.value.param == "response_format"


def test_a_bundles_template_shows_whether_its_model_reasons(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for number, (template, reasons) in enumerate(((CHATML, False), (REASONER, True), (TEMPLATES["qwen3"], True))):
        (tmp_path / str(number)).mkdir()
        model = load_model(tiny_bundle(tmp_path / str(number), "onnx", template=template), threads=1)
        assert isinstance(model.reasoning, Qwen3) == reasons
        assert (model.tool_format is not None) == (template == TEMPLATES["qwen3"])
        model.close()


def test_the_tokens_of_reasoning_are_counted_and_the_stop_string_that_was_found_is_told() -> None:
    thought = "<think>Hm.</think>"
    events = list(generate(scripted_model(f"{thought}\n\nParis."), _asked(stop=("x", "ri", "s"))))
    end = events[-1]
    assert isinstance(end, Finished)
    # A byte is a token; the last one of the opening tag is the first inside.
    assert end.usage.reasoning_tokens == len(thought) - len("<think>") + 1
    assert (end.stops, end.reasons) == (("ri",), ("stop",))
    end = list(generate(scripted_model("Paris."), _asked(n=2)))[-1]
    assert isinstance(end, Finished)
    assert (end.usage.reasoning_tokens, end.stops) == (0, (None, None))


def _asked(**fields: Any) -> ChatRequest:
    return ChatRequest("r", (Message("user", "Where?"),), **fields)
