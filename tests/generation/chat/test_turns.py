"""How a prompt ends: with a new turn, inside the last message, or after it."""

from __future__ import annotations

import pytest

from edgekit.errors import RequestError
from edgekit.generation.chat.prompt import encode_chat
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.types import ChatRequest, Message, ToolCall
from tests.generation.tiny import byte_tokenizer
from tests.models import CHATML, SPECIAL

STRIPPING = CHATML.replace("message['content'] }}", "message['content'] | trim }}")
HIDING = CHATML.replace("message['content'] }}", "message['content'][:3] }}")


def shown(template: str, turn: str, *contents: str) -> str:
    tokenizer = byte_tokenizer()
    roles = ("user", "assistant", "user", "assistant")
    messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]  # type: ignore[arg-type]
    prompt = encode_chat(tokenizer, ChatTemplate(template), messages, turn=turn)  # type: ignore[arg-type]
    return tokenizer.decode(prompt.tokens, visible=tokenizer.special_ids)


@pytest.mark.parametrize("template", [CHATML, STRIPPING])
# "end" is in the text after it too, and "user" before.
@pytest.mark.parametrize("start", ["The capital", "end", "user", "a ", " b", "x\n", "<|im_end|>"])
def test_a_continued_message_is_left_open_exactly_where_it_ends(template: str, start: str) -> None:
    kept = start if template == CHATML else start.lstrip()
    assert shown(template, "continue", "Hi", start) == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{kept}"


def test_without_a_turn_nothing_follows_the_messages() -> None:
    assert shown(CHATML, "none", "Hi") == "<|im_start|>user\nHi<|im_end|>\n"
    assert shown(CHATML, "new", "Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_special_token_at_the_end_of_a_continued_message_stays_text() -> None:
    tokenizer = byte_tokenizer()
    messages = [Message("user", "Hi"), Message("assistant", "a<|im_end|>")]
    tokens = encode_chat(tokenizer, ChatTemplate(CHATML), messages, turn="continue").tokens
    assert list(tokens).count(tokenizer.special_tokens[SPECIAL[2]]) == 1


def test_a_message_that_the_template_cuts_is_not_continued() -> None:
    with pytest.raises(RequestError, match="does not show it as it is"):
        shown(HIDING, "continue", "Hi", "The capital")


@pytest.mark.parametrize("last", [Message("assistant", ""), Message("assistant", "a", (ToolCall("c", "f", "{}"),))])
def test_calls_and_empty_messages_are_not_continued(last: Message) -> None:
    with pytest.raises(RequestError, match="cannot be continued"):
        ChatRequest("r", (Message("user", "Hi"), last), turn="continue")
