from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.generation.chat.prompt import Prompt
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.truncation import leave_out, turns
from edgekit.generation.model import TextModel
from edgekit.generation.tools import CallStart
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.types import ChatRequest, Message, Tool, ToolCall, ToolChoice
from tests.generation.chat.test_prompt import TOOLED
from tests.generation.tiny import echo_model
from tests.models import CHATML

ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
CHAT = (
    Message("system", "s" * 20),
    Message("user", "1" * 100),
    Message("assistant", "", (ToolCall("c1", "now", "{}"),)),
    Message("tool", "2" * 100, tool_call_id="c1"),
    Message("assistant", "3" * 100),
    Message("user", "4" * 100),
    Message("assistant", "5" * 100),
    Message("user", "6" * 100),
)


def _model(length: int, *, tools: bool = True) -> TextModel:
    model = echo_model(context_length=length)
    if not tools:
        return model
    return dataclasses.replace(model, template=ChatTemplate(TOOLED), tool_format=Hermes("", {}))


def _ask(messages: tuple[Message, ...] = CHAT, **fields: Any) -> ChatRequest:
    options: dict[str, Any] = {"truncation": "auto", "max_tokens": 10}
    return ChatRequest("r", messages, **options | fields)


def _shown(model: TextModel, prompt: Prompt) -> str:
    return model.tokenizer.decode(prompt.tokens)


def test_a_chat_that_fits_is_unchanged() -> None:
    model = _model(1024)
    assert model.prompt(_ask()) == model.prompt(_ask(truncation="disabled"))
    assert model.prompt(_ask()).left_out == 0


def test_the_oldest_turns_are_dropped_first_with_their_calls_and_results() -> None:
    model = _model(500)
    prompt = model.prompt(_ask())
    text = _shown(model, prompt)
    # The first turn: a question, a call, its result and the answer.
    assert prompt.left_out == 4
    assert "now" not in text
    assert [char * 20 in text for char in "s123456"] == [True, False, False, False, True, True, True]
    assert len(prompt.tokens) <= 490


def test_no_more_is_dropped_than_needed_and_the_last_question_and_the_system_message_stay() -> None:
    counts = {}
    for length in range(170, 900, 10):
        model = _model(length)
        prompt = model.prompt(_ask())
        counts[length] = prompt.left_out
        assert "6" * 100 in _shown(model, prompt)
        assert "s" * 20 in _shown(model, prompt)
    assert sorted(set(counts.values())) == [0, 4, 6]
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_what_does_not_fit_without_the_old_turns_either_is_refused_with_the_token_counts() -> None:
    with pytest.raises(RequestError, match=r"has 1\d\d tokens; the context holds 120") as caught:
        _model(120).prompt(_ask())
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert caught.value.hint == "shorten the last message: all older ones are left out already"
    with pytest.raises(RequestError, match="the context holds 500") as caught:
        _model(500).prompt(_ask(truncation="disabled"))
    assert caught.value.hint == "shorten the messages or leave out old ones"


def test_space_is_reserved_for_max_tokens() -> None:
    length = len(_model(1024).prompt(_ask()).tokens) + 40
    assert _model(length).prompt(_ask(max_tokens=40)).left_out == 0
    assert _model(length).prompt(_ask(max_tokens=41)).left_out == 4
    # By default a quarter of the context is reserved; never more than half.
    assert _model(length).prompt(_ask(max_tokens=None)).left_out == 4
    assert _model(length).prompt(_ask(max_tokens=100_000)) == _model(length).prompt(_ask(max_tokens=length // 2))


@given(roles=st.lists(ROLES, max_size=12))
def test_only_complete_turns_are_dropped_and_never_the_last_one_or_a_system_message(roles: list[Any]) -> None:
    messages = [Message(role, "") for role in roles]
    found = turns(messages)
    dropped = [number for turn in found for number in turn]
    assert dropped == sorted(dropped)
    assert not any(roles[number] == "system" for number in dropped)
    users = [number for number, role in enumerate(roles) if role == "user"]
    if users:
        assert all(number < users[-1] for number in dropped)
    else:
        assert dropped == []
    # Every remaining turn starts with a user message.
    for turn in found[1:]:
        assert roles[turn[0]] == "user"
        assert all(roles[number] != "user" for number in turn[1:])


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), max_tokens=st.integers(0, 300))
def test_the_fewest_turns_are_dropped_that_make_it_fit(sizes: list[int], max_tokens: int) -> None:
    messages = [Message("user", "x" * size) for size in sizes]
    prompt = leave_out(messages, lambda kept: Prompt([0] * sum(len(item.content) for item in kept)), max_tokens)
    fitting = [count for count in range(1, len(sizes)) if sum(sizes[count:]) <= max_tokens]
    assert prompt.left_out == (fitting[0] if fitting else len(sizes) - 1)
    assert len(prompt.tokens) == sum(sizes[prompt.left_out :])


def test_a_raw_prompt_is_encoded_without_a_template() -> None:
    model = echo_model()
    (end,) = model.tokenizer.encode("<|im_end|>")
    prompt = model.prompt(ChatRequest("r", prompt="a<|im_end|>b"))
    assert _shown(model, prompt) == "ab"
    assert [*prompt.tokens] == [*model.tokenizer.encode("a"), end, *model.tokenizer.encode("b")]
    with pytest.raises(RequestError, match="is empty") as caught:
        model.prompt(ChatRequest("r", prompt=""))
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match="the prompt has 1024 tokens") as caught:
        model.prompt(ChatRequest("r", prompt="a" * 1024))
    assert caught.value.param == "prompt"


def test_tools_for_a_model_without_tool_calling_are_refused() -> None:
    model = _model(1024, tools=False)
    hello = (Message("user", "Hi"),)
    with pytest.raises(RequestError, match="does not support tool calls") as caught:
        model.prompt(_ask(hello, tools=(Tool("now"),)))
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(RequestError, match="does not support tool calls") as caught:
        model.prompt(_ask())
    assert caught.value.param == "messages"
    # Tools that must not be called change nothing.
    plain = model.prompt(_ask(hello))
    assert model.prompt(_ask(hello, tools=(Tool("now"),), tool_choice=ToolChoice("none"))) == plain
    assert model.template is not None
    assert model.template.source == CHATML


def test_tools_and_arguments_reach_the_template() -> None:
    model = _model(1024)
    prompt = model.prompt(_ask((Message("user", "Hi"),), tools=(Tool("now"),), template_arguments={"note": "NOTE"}))
    assert '"name": "now"' in _shown(model, prompt)
    assert "NOTE" in _shown(model, prompt)
    with pytest.raises(RequestError) as caught:
        model.prompt(_ask(template_arguments={"messages": []}))
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(("mode", "calls"), [("none", 0), ("auto", 1)])
def test_what_looks_like_a_call_is_text_where_calls_are_not_allowed(mode: Any, calls: int) -> None:
    model = _model(1024)
    request = _ask(
        (Message("user", "Hi"),), tools=(Tool("now"),), tool_choice=ToolChoice(mode), parallel_tool_calls=False
    )
    parser = model.prepare(request).parser()
    assert parser is not None
    fence = '```json\n{"name": "now", "arguments": {}}\n```\n'
    events = [*parser.push(fence * 2), *parser.finish()]
    assert sum(isinstance(event, CallStart) for event in events) == calls
