"""Keeps what callers write apart from the model's control tokens, all through a template.

Text that encoding would turn into a special token is put between two marks that nobody can guess; what lies between
marks is then encoded as plain text, and the rest, template and messages together, as it was in training.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.errors import RequestError
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Guard"]

_MAX_DEPTH = 64


class Guard:
    """The marks of one prompt.

    Args:
        tokenizer: It knows the special tokens.
        values: All that callers wrote: texts, and lists and mappings of such. A special token may be put together
            of the end of one and the beginning of another.

    Attributes:
        size: Characters in `values`.
    """

    def __init__(self, tokenizer: Tokenizer, values: Sequence[Any]) -> None:
        self._tokenizer = tokenizer
        self._opening, self._closing = _mark(), _mark()
        self._texts = {text for text in _texts(values, 0) if text}
        self.size = sum(map(len, _texts(values, 0)))

    def put(self, value: Any) -> Any:
        """Return a value with marks in its texts, those of its mappings' keys included."""
        if isinstance(value, str):
            return self._put(value)
        if isinstance(value, Mapping):
            return {self.put(key): self.put(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(item) for item in value]
        return value

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt.

        Raises:
            RequestError: The template took a marked text apart.
        """
        ids: list[int] = []
        head, *rest = text.split(self._opening)
        self._plain(head, ids)
        for part in rest:
            quoted, mark, after = part.partition(self._closing)
            if not mark:
                raise _torn()
            ids += self._tokenizer.encode(quoted, obey_special=False)
            self._plain(after, ids)
        return ids

    def _put(self, text: str) -> str:
        spans = self._tokenizer.special_spans(text)
        tail = self._tail(text)
        if tail:
            spans.append((len(text) - tail, len(text)))
        pieces = []
        end = 0
        for start, stop in spans:
            pieces += [text[end:start], self._opening, text[start:stop], self._closing]
            end = stop
        return "".join([*pieces, text[end:]])

    def _tail(self, text: str) -> int:
        """Length of an end of the text that another text may make a special token."""
        for length in range(min(len(text), self._tokenizer.longest_special), 0, -1):
            for rest in self._tokenizer.special_rests(text[-length:]):
                if any(other.startswith(rest) or rest.startswith(other) for other in self._texts):
                    return length
        return 0

    def _plain(self, text: str, ids: list[int]) -> None:
        # A template that cuts text may cut a mark; what it guarded would then be obeyed.
        if any(char in text for char in (*self._opening, *self._closing)):
            raise _torn()
        if text:
            ids += self._tokenizer.encode(text)


def _texts(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise RequestError(f"a value is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key, depth + 1)
            yield from _texts(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, depth + 1)


def _mark() -> str:
    # Private-use characters of plane 16: no letter case, no whitespace, no meaning to a template; 2**96 of them.
    return "".join(chr(0x100000 + secrets.randbelow(0xFFFE)) for _ in range(6))


def _torn() -> RequestError:
    return RequestError(
        "a message holds a special token of this model, which its chat template takes apart",
        hint="leave the special token out",
        param="messages",
    )
