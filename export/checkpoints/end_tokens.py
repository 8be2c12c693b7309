"""Decides which tokens end an answer, for checkpoints of every format.

A fine-tune may keep the end token of its base model in every file and still be trained to end its turns with another
one. So three sources count: the ids that the files state, the end tokens of known chat formats, and the token after an
assistant's turn in the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekit.errors import EdgekitError

__all__ = ["AddedToken", "end_tokens", "turn_end"]

# Tokens that end an answer in some chat format. Source: `llama-vocab.cpp` of ggml-org/llama.cpp.
_KNOWN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
# In gpt-oss' format `<|end|>` ends a message, after which the answer goes on.
_NOT_WITH = {"<|end|>": "<|return|>"}
_QUESTION, _ANSWER = "Which word comes next?", "Xylophone"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in text before it is split.

    Attributes:
        special: It has a meaning in the chat format and is no text.
    """

    id: int
    special: bool


def end_tokens(
    stated: Iterable[int], added: Mapping[str, AddedToken], template: str | None, special: Mapping[str, str]
) -> tuple[int, ...]:
    """Return the ids of every token that ends an answer, those stated first; empty if there is none.

    Args:
        stated: Ids that the checkpoint's files name.
        added: The tokenizer's added tokens by their text.
        template: The chat template; None if there is none.
        special: `bos_token` and so on, as the template sees them.
    """
    found = list(stated)
    ended = None if template is None else turn_end(template, added, special)
    if ended is not None:
        found.append(added[ended].id)
    known = [text for text in _KNOWN if text in added and added[text].special and _NOT_WITH.get(text) not in added]
    return tuple(dict.fromkeys([*found, *(added[text].id for text in known)]))


def turn_end(template: str, added: Iterable[str], special: Mapping[str, str]) -> str | None:
    """Return the added token that a chat template writes after an assistant's turn.

    Formats without such a token begin the user's next turn with one, which the model then writes too. None if no added
    token follows, or the template cannot be rendered.

    Args:
        template: The chat template.
        added: The tokenizer's added tokens.
        special: `bos_token` and so on.
    """
    from edgekit.generation.chat.template import ChatTemplate

    turn = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    pattern = re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True) if text.strip()))
    for messages in (turn, [*turn, *turn]):
        try:
            text = ChatTemplate(template, special).render(messages, add_generation_prompt=False)
        except EdgekitError:
            continue
        _, answer, after = text.partition(_ANSWER)
        match = pattern.match(after.lstrip()) if answer and pattern.pattern else None
        if match is not None:
            return match[0]
    return None
