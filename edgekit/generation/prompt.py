"""Messages to prompt tokens, so that nobody can speak with the model's control tokens.

What callers write is text: `<|im_end|>` in a message must not end the turn. The template is rendered with each such
span of a message between two marks that nobody can guess; what lies between marks is encoded as plain text, and the
rest, template and messages together, as it was in training.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from edgekit.errors import RequestError
from edgekit.generation.request import Message
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["encode_chat"]


def encode_chat(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Return the prompt's token ids, the opening of the assistant's turn included.

    Raises:
        RequestError: The template refuses the messages, or tears a special token of a message apart.
        BundleError: The template failed.
    """
    opening, closing = _mark(), _mark()
    contents = [_guard(tokenizer, message.content, opening, closing) for message in messages]
    text = template.render(
        [{"role": message.role, "content": content} for message, content in zip(messages, contents, strict=True)]
    )
    ids: list[int] = []
    head, *rest = text.split(opening)
    _plain(tokenizer, head, ids, opening + closing)
    for part in rest:
        quoted, mark, after = part.partition(closing)
        if not mark:
            raise _torn()
        ids += tokenizer.encode(quoted, obey_special=False)
        _plain(tokenizer, after, ids, opening + closing)
    return ids


def _guard(tokenizer: Tokenizer, content: str, opening: str, closing: str) -> str:
    pieces = []
    end = 0
    for start, stop in tokenizer.special_spans(content):
        pieces += [content[end:start], opening, content[start:stop], closing]
        end = stop
    return "".join([*pieces, content[end:]])


def _plain(tokenizer: Tokenizer, text: str, ids: list[int], marks: str) -> None:
    # A template that cuts text may cut a mark; what it guarded would then be obeyed.
    if any(char in marks for char in text):
        raise _torn()
    if text:
        ids += tokenizer.encode(text)


def _mark() -> str:
    # Private-use characters of plane 16: no letter case, no whitespace, no meaning to a template; 2**96 of them.
    return "".join(chr(0x100000 + secrets.randbelow(0xFFFE)) for _ in range(6))


def _torn() -> RequestError:
    return RequestError(
        "a message holds a special token of this model, which its chat template takes apart",
        hint="leave the special token out",
        param="messages",
    )
