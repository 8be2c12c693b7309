"""Keeps what callers write apart from the model's control tokens, all through a template.

Text that encoding would turn into a special token is put between two marks that nobody can guess and no caller wrote;
what lies between marks is then encoded as plain text, and the rest, template and messages together, as it was in
training.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from edgekit.errors import RequestError
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Guard"]

_MAX_DEPTH = 64
# Private-use characters of plane 16: no letter case, no whitespace, no meaning to a template.
_FIRST, _COUNT = 0x100000, 0xFFFE
_MARK_LENGTH = 6


class Guard:
    """The marks of one prompt.

    Args:
        tokenizer: It knows the special tokens.
        values: All that callers wrote: texts, and lists and mappings of such. A special token may be put together
            of the end of one and the beginning of another.

    Raises:
        RequestError: A value is nested too deep, or the texts leave no characters for the marks.

    Attributes:
        size: Characters in `values`.
    """

    def __init__(self, tokenizer: Tokenizer, values: Sequence[Any]) -> None:
        self._tokenizer = tokenizer
        self._texts = {text for text in _texts(values, 0) if text}
        self._opening, self._closing = _marks(set().union(*self._texts))
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


def _marks(written: Collection[str]) -> tuple[str, str]:
    """Two marks of characters that are not among those written; 2**96 of each, or nearly so."""
    if sum(char >= chr(_FIRST) for char in written) > _COUNT // 2:
        raise RequestError(
            f"the messages hold more than {_COUNT // 2} different characters of Unicode's private-use plane 16",
            hint="they mean nothing to a model: leave them out",
            param="messages",
        )
    chars: list[str] = []
    while len(chars) < 2 * _MARK_LENGTH:
        char = chr(_FIRST + secrets.randbelow(_COUNT))
        if char not in written and char not in chars:
            chars.append(char)
    return "".join(chars[:_MARK_LENGTH]), "".join(chars[_MARK_LENGTH:])


def _torn() -> RequestError:
    return RequestError(
        "a message holds a special token of this model, which its chat template takes apart",
        hint="leave the special token out",
        param="messages",
    )
