"""What a model thinks before it answers comes apart from the answer, tools or none, unless that is not wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.decode import generate
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.request import ChatRequest, Delta, Finish, Message, ResponseFormat, Tool, ToolChoice
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tools import find_format, find_reasoning
from edgekit.generation.tools.qwen3 import Qwen3
from tests.generation.bundles import tiny_bundle
from tests.generation.tiny import echo_model
from tests.generation.tools.test_find_format import QWEN3
from tests.models import CHATML

# Ends in what might go on as another character: it is not known to be whole before the tag comes.
THOUGHTS = "\nIs it 4"
ANSWER = "Paris, No. 4"
WRITTEN = f"<think>{THOUGHTS}</think>\n\n{ANSWER}"
# A model that reasons and calls nothing; its template has begun the thoughts.
REASONER = CHATML.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}"
# What it teaches is told by its source; what it renders is ChatML.
TAUGHT = f"{{% if false %}}{QWEN3}{{% endif %}}"
TEMPLATES = {"qwen3": TAUGHT + CHATML, "reasoner": REASONER}


def _model(template: str, answer: str = WRITTEN) -> TextModel:
    model = echo_model(answer)
    return replace(
        model,
        template=ChatTemplate(template),
        tool_format=find_format(template, {}),
        reasoning=find_reasoning(template, {}),
    )


def _ask(model: TextModel, **fields: Any) -> tuple[str, str]:
    """Thoughts and answer."""
    said = {True: "", False: ""}
    fields.setdefault("messages", (Message("user", "Hello"),))
    events = list(generate(model, ChatRequest("r", **fields)))
    assert isinstance(events[-1], Finish), events[-1]
    for event in events:
        if isinstance(event, Delta):
            said[event.reasoning] += event.text
    return said[True], said[False]


def test_thoughts_come_apart_without_tools_where_the_prompt_does_not_open_them() -> None:
    assert _ask(_model(TEMPLATES["qwen3"])) == (THOUGHTS, ANSWER)


def test_thoughts_that_the_prompt_opens_come_apart_whether_the_model_can_call_or_not() -> None:
    for tools in ("", TAUGHT):
        assert _ask(_model(tools + REASONER)) == (THOUGHTS.lstrip(), ANSWER)


def test_thoughts_that_are_wanted_in_the_answer_are_there_as_they_were_written() -> None:
    assert _ask(_model(TEMPLATES["qwen3"]), reasoning="inline") == ("", WRITTEN)
    assert _ask(_model(REASONER), reasoning="inline") == ("", WRITTEN.removeprefix("<think>\n"))


def test_thoughts_come_apart_with_tools_as_without() -> None:
    tools = (Tool("now"),)
    none = ToolChoice("none")
    assert _ask(_model(TEMPLATES["qwen3"]), tools=tools) == (THOUGHTS, ANSWER)
    assert _ask(_model(TEMPLATES["qwen3"]), tools=tools, tool_choice=none) == (THOUGHTS, ANSWER)
    # A model that knows no tools may be offered them as long as it need not call any.
    assert _ask(_model(REASONER), tools=tools, tool_choice=none) == (THOUGHTS.lstrip(), ANSWER)


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_an_answer_without_thoughts_is_one(template: str) -> None:
    answer = "<think>\n</think>Look:\n```json\n{}" if template == REASONER else "Look:\n```json\n{}"
    assert _ask(_model(template, answer)) == ("", answer.rpartition(">")[2])


def test_tags_are_text_where_the_template_knows_none_and_where_a_text_is_continued() -> None:
    assert _ask(_model(CHATML)) == ("", WRITTEN)
    prompt = "<|im_start|>assistant\n<think>"
    # As plain text the opening of a turn is no opening: what comes is anything, and apart is nothing.
    model = _model(TEMPLATES["qwen3"])
    assert _ask(model, prompt=prompt, messages=(), max_tokens=3)[0] == ""


def test_a_form_is_all_of_an_answer_unless_the_prompt_has_begun_to_think() -> None:
    form = ResponseFormat("choice", ("yes", "no"))
    assert _ask(_model(TEMPLATES["qwen3"], "yes"), response_format=form) == ("", "yes")
    assert _ask(_model(REASONER, "<think>\nHm.</think>\n\nno"), response_format=form) == ("Hm.", "no")
    grammar = ResponseFormat("grammar", 'start: "yes"')
    assert _ask(_model(TEMPLATES["qwen3"], "yes"), response_format=grammar) == ("", "yes")
    with pytest.raises(RequestError, match="reasoning") as caught:
        _model(REASONER).ticket(
            ChatRequest("r", (Message("user", "Hi"),), response_format=grammar), lambda _: None, submitted=0.0
        )
    assert caught.value.param == "response_format"


def test_a_bundle_says_whether_its_model_reasons(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for number, (template, reasons) in enumerate(((CHATML, False), (REASONER, True), (TEMPLATES["qwen3"], True))):
        (tmp_path / str(number)).mkdir()
        model = load_model(tiny_bundle(tmp_path / str(number), "onnx", template=template), threads=1)
        assert isinstance(model.reasoning, Qwen3) == reasons
        assert (model.tool_format is not None) == (template == TEMPLATES["qwen3"])
        model.close()
