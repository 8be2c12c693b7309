"""Messages are rearranged for templates that refuse them, and for no others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.chat.prompt import encode_chat, render_chat
from edgekit.generation.chat.strict_forms import strict_forms
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.types import Message
from tests.generation.tiny import byte_tokenizer
from tests.models import CHATML

_LOOP = "{% for message in messages %}"
SYSTEM_FIRST = CHATML.replace(
    _LOOP, _LOOP + "{% if message.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}"
)
ALTERNATING = SYSTEM_FIRST.replace(
    _LOOP,
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for turn in turns %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% endfor %}" + _LOOP,
)
NO_SYSTEM = ALTERNATING.replace(
    _LOOP, _LOOP + "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)


def texts(template: str, *turns: tuple[str, str]) -> list[tuple[str, str]]:
    """The messages that a template shows."""
    shown = render_chat(ChatTemplate(template), [Message(role, text) for role, text in turns], turn="none")  # type: ignore[arg-type]
    blocks = [block.removesuffix("<|im_end|>\n") for block in shown.split("<|im_start|>")[1:]]
    return [(role, text) for role, _, text in (block.partition("\n") for block in blocks)]


AGENT = (("system", "A"), ("user", "1"), ("user", "2"), ("system", "B"), ("assistant", "3"), ("user", "4"))


def test_each_template_gets_the_form_that_it_takes() -> None:
    assert texts(CHATML, *AGENT) == [*AGENT]
    rest = [("assistant", "3"), ("user", "4")]
    assert texts(SYSTEM_FIRST, *AGENT) == [("system", "A\n\nB"), ("user", "1"), ("user", "2"), *rest]
    assert texts(ALTERNATING, *AGENT) == [("system", "A\n\nB"), ("user", "1\n\n2"), *rest]
    assert texts(NO_SYSTEM, *AGENT) == [("user", "A\n\nB\n\n1\n\n2"), *rest]


def test_what_no_form_mends_is_refused_for_its_own_reason() -> None:
    with pytest.raises(RequestError, match="alternate"):
        texts(ALTERNATING, ("assistant", "x"), ("user", "1"))
    with pytest.raises(RequestError, match="no system"):
        texts(NO_SYSTEM, ("system", "A"))


def test_a_special_token_in_joined_messages_stays_text() -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.encode("<|im_end|>")
    parts = [Message("system", "<|im_"), Message("user", "Hi"), Message("system", "end|><|im_end|>")]
    tokens = [*encode_chat(tokenizer, ChatTemplate(SYSTEM_FIRST), parts).tokens]
    assert tokens.count(end[0]) == 2


def test_no_form_loses_or_adds_text() -> None:
    roles = ("system", "user", "assistant", "tool")
    for chat in itertools.chain.from_iterable(itertools.product(roles, repeat=length) for length in range(1, 5)):
        messages: Sequence[Mapping[str, Any]] = [
            {"role": role, "content": f"<{number}>"} for number, role in enumerate(chat)
        ]
        for form in strict_forms(messages):
            assert form != messages
            whole = "".join(message["content"] for message in form)
            assert sorted(whole.replace("\n\n", "").split(">")) == sorted(
                "".join(message["content"] for message in messages).split(">")
            )
