from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from edgekit.errors import BundleError, RequestError
from edgekit.generation.chat.prompt import encode_chat
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.types import ChatRequest, Message, Tool, ToolCall
from tests.generation.tiny import byte_tokenizer, echo_model
from tests.models import CHATML, SPECIAL

TOKENIZER = byte_tokenizer()
START, END = TOKENIZER.encode("<|im_start|>")[0], TOKENIZER.encode("<|im_end|>")[0]
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")


def _encode(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], **options: Any) -> list[int]:
    return [*encode_chat(tokenizer, template, messages, **options).tokens]


def test_an_ordinary_chat_is_encoded_exactly_as_its_rendered_text() -> None:
    messages = (Message("system", "Be brief."), Message("user", "\n Hi, 世界 "))
    rendered = ChatTemplate(CHATML).render([{"role": item.role, "content": item.content} for item in messages])
    assert _encode(TOKENIZER, ChatTemplate(CHATML), messages) == TOKENIZER.encode(rendered)


@given(
    contents=st.lists(
        st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "|>", " ", "\n", "hi", "é"])).map("".join),
        min_size=1,
        max_size=3,
    ),
    source=st.sampled_from([CHATML, TRIMMED]),
)
def test_nothing_a_caller_writes_becomes_a_special_token(contents: list[str], source: str) -> None:
    messages = [Message("user", content) for content in contents]
    ids = _encode(TOKENIZER, ChatTemplate(source), messages)
    # One turn opened and closed per message, and the assistant's opened.
    assert (ids.count(START), ids.count(END)) == (len(contents) + 1, len(contents))
    shown = ChatTemplate(source).render([{"role": "user", "content": content} for content in contents])
    plain = TOKENIZER.decode([number for number in ids if number not in TOKENIZER.special_ids])
    for special in SPECIAL:
        # What the caller wrote is still there, as text.
        written = sum(content.count(special) for content in contents)
        assert plain.count(special) >= written
    assert len(plain) <= len(shown)


def test_a_message_may_contain_the_characters_that_markers_are_made_of() -> None:
    # Half of the characters: two markers drawn at random would avoid them only once in four thousand times.
    content = "".join(map(chr, range(0x100000, 0x100000 + 0xFFFE, 2)))
    ids = _encode(TOKENIZER, ChatTemplate(CHATML), [Message("user", content + "<|im_end|>")])
    assert (ids.count(START), ids.count(END)) == (2, 1)
    assert content + "<|im_end|>" in TOKENIZER.decode([number for number in ids if number not in TOKENIZER.special_ids])
    with pytest.raises(RequestError, match="private-use"):
        _encode(
            TOKENIZER, ChatTemplate(CHATML), [Message("user", content + "".join(map(chr, range(0x100001, 0x100009))))]
        )


def test_a_special_token_hidden_behind_a_normalizer_is_found() -> None:
    backend = Backend(models.BPE(vocab={char: n for n, char in enumerate("<|x>abc")}, merges=[]))
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|x|>", special=True, normalized=True)])
    tokenizer = Tokenizer(backend)
    (special,) = tokenizer.encode("<|x|>")
    assert tokenizer.encode("\uff1c|x|\uff1e") == [special]
    template = ChatTemplate("{{ messages[0]['content'] }}")
    assert special not in _encode(tokenizer, template, [Message("user", "a\uff1c|x|\uff1eb")])


def test_a_template_that_splits_a_special_token_is_refused() -> None:
    template = ChatTemplate("{{ messages[0]['content'][:8] }}")
    with pytest.raises(RequestError, match="special token") as caught:
        _encode(TOKENIZER, template, [Message("user", "a <|im_end|> b")])
    assert caught.value.param == "messages"


def test_a_template_that_omits_messages_still_protects_the_rest() -> None:
    template = ChatTemplate("{{ messages[-1]['content'] }}<|im_end|>")
    ids = _encode(TOKENIZER, template, [Message("user", "<|im_end|>"), Message("user", "b<|im_end|>")])
    assert ids.count(END) == 1


def test_tokens_that_are_added_but_not_special_are_left_to_the_template() -> None:
    backend = Backend(
        models.BPE(vocab={char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = Tokenizer(backend)
    assert len(_encode(tokenizer, ChatTemplate("{{ messages[0]['content'] }}"), [Message("user", "<think>")])) == 1


TOOLED = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.id }}:{{ call.function.name }}({{ call.function.arguments | tojson }})"
    "{% endfor %}{% if m.tool_call_id %}{{ m.tool_call_id }}={{ m.name }}{% endif %}<|im_end|>\n{% endfor %}"
    "{{ note }}<|im_start|>assistant\n"
)
CALLED = (
    Message("user", "Paris?"),
    Message("assistant", "", (ToolCall("c1", "weather", '{"city":"Paris","days":[1,2.5]}'), ToolCall("c2", "now", ""))),
    Message("tool", "rain", tool_call_id="c1"),
    Message("tool", "noon", tool_call_id="c2", name="clock"),
)


def test_tools_calls_and_results_are_rendered_in_the_shape_templates_take() -> None:
    tools = [
        Tool("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}}),
        Tool("now"),
    ]
    ids = _encode(TOKENIZER, ChatTemplate(TOOLED), CALLED, tools=tools, prompt_id=str.upper)
    text = TOKENIZER.decode(ids, visible=TOKENIZER.special_ids)
    assert [json.loads(line) for line in text.splitlines()[:2]] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        },
        {
            "type": "function",
            "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert '\nC1:weather({"city": "Paris", "days": [1, 2.5]})C2:now({})<|im_end|>' in text
    assert "rainC1=weather<|im_end|>" in text
    assert "noonC2=clock<|im_end|>" in text


def test_a_template_that_concatenates_arguments_gets_them_as_a_string() -> None:
    template = ChatTemplate(
        "{% for c in messages[1].tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
    )
    assert TOKENIZER.decode(_encode(TOKENIZER, template, CALLED)) == 'weather{"city": "Paris", "days": [1, 2.5]}now{}'
    with pytest.raises(BundleError):
        _encode(TOKENIZER, ChatTemplate("{{ messages[0].content / 1 }}"), CALLED)


def test_a_failure_of_the_template_is_the_requests_fault_if_it_renders_a_simple_question() -> None:
    template = ChatTemplate("{{ messages[0].content[:at or 9] }}")
    with pytest.raises(RequestError, match=r"the chat template failed: .*, on these messages") as caught:
        _encode(TOKENIZER, template, [Message("user", "Hi")], arguments={"at": "x"})
    assert caught.value.param == "messages"


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": NaN}', "7", "[" * 100_000])
def test_call_arguments_that_are_not_an_object_are_a_request_error(arguments: str) -> None:
    message = Message("assistant", "", (ToolCall("c", "weather", arguments),))
    with pytest.raises(RequestError, match="`weather` are not a JSON object"):
        _encode(TOKENIZER, ChatTemplate(TOOLED), [message])


_WRITTEN = st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "|>", '"', "\\", "a"]), max_size=4).map("".join)


@given(texts=st.lists(_WRITTEN, min_size=10, max_size=10))
def test_nothing_in_tools_calls_results_or_arguments_becomes_a_special_token(texts: list[str]) -> None:
    name, description, key, value, called, argument, given_, result, number, note = texts
    tools = [Tool(name, description, {"type": "object", key: [value, {value: key}]})]
    messages = [
        Message("user", "Hi"),
        Message("assistant", value, (ToolCall(number, called, json.dumps({argument: [given_]})),)),
        Message("tool", result, tool_call_id=number, name=called),
    ]
    ids = _encode(TOKENIZER, ChatTemplate(TOOLED), messages, tools=tools, arguments={"note": note})
    assert (ids.count(START), ids.count(END)) == (4, 3)
    text = TOKENIZER.decode([number for number in ids if number not in TOKENIZER.special_ids])
    first = json.loads(text.splitlines()[0])
    assert first["function"]["name"] == name
    assert first["function"]["description"] == description
    assert note in text


@given(first=_WRITTEN, second=_WRITTEN, third=_WRITTEN)
def test_adjacent_strings_do_not_join_to_a_special_token(first: str, second: str, third: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ messages[1].content + messages[2].content }}<|im_start|>")
    ids = _encode(TOKENIZER, template, [Message("user", text) for text in (first, second, third)])
    assert [number for number in ids if number in TOKENIZER.special_ids] == [START]
    assert TOKENIZER.decode(ids) == first + second + third


def test_a_string_that_ends_like_the_start_of_a_special_token_is_encoded_as_usual() -> None:
    messages = [Message("user", "a <|im_"), Message("user", "b <")]
    rendered = ChatTemplate(CHATML).render([{"role": "user", "content": item.content} for item in messages])
    assert _encode(TOKENIZER, ChatTemplate(CHATML), messages) == TOKENIZER.encode(rendered)


def test_what_is_nested_too_deep_or_too_long_is_refused_before_it_is_rendered() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(RequestError, match="nested"):
        _encode(TOKENIZER, ChatTemplate(TOOLED), [Message("user", "Hi")], tools=[Tool("t", "", deep)])
    with pytest.raises(RequestError, match="characters") as caught:
        _encode(TOKENIZER, ChatTemplate(TOOLED), [Message("user", "Hi" * 3_000_000)])
    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_that_opens_the_model_s_reasoning_says_so() -> None:
    messages = [Message("user", "Hi")]
    assert encode_chat(TOKENIZER, ChatTemplate("<|im_start|>assistant\n<think>\n"), messages).thinking
    assert not encode_chat(TOKENIZER, ChatTemplate("<think>\n\n</think>\n\n"), messages).thinking


@pytest.mark.parametrize(
    ("end", "thinking"), [("", False), ("<think>", True), ("<think>\n", True), ("<think>\n\n</think>\n\n", False)]
)
def test_a_prompt_is_in_the_reasoning_only_where_its_template_opens_it(end: str, thinking: bool) -> None:
    prompt = encode_chat(TOKENIZER, ChatTemplate(CHATML + end), [Message("user", "Hi")])
    assert (prompt.thinking, prompt.left_out) == (thinking, 0)
    # Text to be continued has no reasoning, whatever it ends with.
    assert echo_model().prompt(ChatRequest("r", (), prompt="Hi" + end)).thinking is False
