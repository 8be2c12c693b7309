"""Checks whether a grammar allows an output, with llguidance itself and one token per byte."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache

from llguidance import LLMatcher, LLTokenizer

__all__ = ["TOKENS", "allows"]

_END = 256
_SPECIAL = (
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
)
TOKENS = {text: _END + 1 + index for index, text in enumerate(_SPECIAL)}


class _Bytes:
    """A tokenizer with llguidance's interface."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", *(text.encode() for text in TOKENS))
    special_token_ids = (_END, *TOKENS.values())
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes) -> Sequence[int]:
        return list(text)


def allows(lark: str, text: str, *, special: Collection[str] = ()) -> bool:
    """Whether a complete output is allowed; the strings of `special` in it are special tokens."""
    matcher, accepted, length = _run(lark, text, special)
    return accepted == length and matcher.is_accepting()


def _run(lark: str, text: str, special: Collection[str]) -> tuple[LLMatcher, int, int]:
    matcher = LLMatcher(_tokenizer(), LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), f"{matcher.get_error()}\n{lark}"
    parts = re.split("|".join(map(re.escape, special)) or "(?!)", text)
    markers = re.findall("|".join(map(re.escape, special)) or "(?!)", text)
    ids: list[int] = [*parts[0].encode()]
    for marker, part in zip(markers, parts[1:], strict=True):
        ids += [TOKENS[marker], *part.encode()]
    return matcher, matcher.try_consume_tokens(ids), len(ids)


@cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(_Bytes(), n_vocab=_END + 1 + len(TOKENS))  # type: ignore[arg-type]
