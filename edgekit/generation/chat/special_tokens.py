"""Keeps special tokens in a caller's text from being encoded as special tokens, across template rendering.

Before rendering, any text that would encode to a special token is wrapped in two random markers, made of characters
that no caller used. After rendering, text between markers is encoded as plain text, and the rest, template and messages
together, as in training.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from edgekit.errors import RequestError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.time_limit import UNLIMITED, TimeLimit

__all__ = ["SpecialTokenGuard"]

_MAX_DEPTH = 64
# Private-use characters of plane 16: no letter case, no whitespace, no meaning to a template.
_FIRST, _COUNT = 0x100000, 0xFFFE
_MARKER_LENGTH = 6


class SpecialTokenGuard:
    """Wraps and encodes the text of one prompt.

    Args:
        tokenizer: Defines the special tokens.
        values: Everything the caller wrote: strings, and lists and mappings of strings. All of it is needed, because
            the end of one string and the start of another may join to a special token.
        limit: Checked for every string.

    Raises:
        RequestError: A value is nested too deeply, or the strings leave no characters for the markers.

    Attributes:
        size: Number of characters in `values`.
        mark: Another marker, for a place in the rendered text; cut it away before `encode`.
    """

    def __init__(self, tokenizer: Tokenizer, values: Sequence[Any], limit: TimeLimit = UNLIMITED) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._strings = {text for text in _strings(values, 0) if text}
        self._opening, self._closing, self.mark = _markers(set().union(*self._strings))
        self.size = sum(map(len, _strings(values, 0)))
        self._starts: set[str] | None = None
        self._completable: dict[str, bool] = {}

    def wrap(self, value: Any) -> Any:
        """Return a value with the special tokens in its strings, including mapping keys, wrapped in markers."""
        if isinstance(value, str):
            return self._wrap(value)
        if isinstance(value, Mapping):
            return {self.wrap(key): self.wrap(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.wrap(item) for item in value]
        return value

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt.

        Raises:
            RequestError: The template split a wrapped special token.
        """
        ids: list[int] = []
        head, *rest = text.split(self._opening)
        self._encode_unwrapped(head, ids)
        for part in rest:
            self._limit.check()
            quoted, marker, after = part.partition(self._closing)
            if not marker:
                raise _split_error()
            ids += self._tokenizer.encode(quoted, obey_special=False)
            self._encode_unwrapped(after, ids)
        return ids

    def _wrap(self, text: str) -> str:
        self._limit.check()
        spans = self._tokenizer.special_spans(text)
        tail = self._tail(text)
        if tail:
            spans.append((len(text) - tail, len(text)))
        parts = []
        end = 0
        for start, stop in spans:
            parts += [text[end:start], self._opening, text[start:stop], self._closing]
            end = stop
        return "".join([*parts, text[end:]])

    def _tail(self, text: str) -> int:
        """Length of the longest suffix that a following string may complete to a special token."""
        lengths = range(min(len(text), self._tokenizer.longest_special), 0, -1)
        return next((length for length in lengths if self._may_be_completed(text[-length:])), 0)

    def _may_be_completed(self, start: str) -> bool:
        completions = self._tokenizer.special_completions(start)
        if not completions:
            return False
        if start not in self._completable:
            # Once for each start of a special token, so that the time is linear in the number of strings.
            self._completable[start] = any(self._may_follow(rest) for rest in completions)
        return self._completable[start]

    def _may_follow(self, rest: str) -> bool:
        """Whether a string starts with `rest`, or is the start of it."""
        if self._starts is None:
            ends, longest = self._tokenizer.special_ends, self._tokenizer.longest_special
            starts = (text[:length] for text in self._strings for length in range(1, min(len(text), longest) + 1))
            self._starts = {start for start in starts if start in ends}
        return rest in self._starts or any(rest[:length] in self._strings for length in range(1, len(rest)))

    def _encode_unwrapped(self, text: str, ids: list[int]) -> None:
        # A template that slices text may cut a marker, and the special token in it would be obeyed.
        if any(char in text for char in (*self._opening, *self._closing)):
            raise _split_error()
        if text:
            ids += self._tokenizer.encode(text)


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise RequestError(f"a value is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key, depth + 1)
            yield from _strings(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, depth + 1)


def _markers(used: Collection[str]) -> tuple[str, str, str]:
    """Three random markers of unused characters, with about 2**96 possibilities each."""
    if sum(char >= chr(_FIRST) for char in used) > _COUNT // 2:
        raise RequestError(
            f"the messages contain more than {_COUNT // 2} different characters of Unicode's private-use plane 16",
            hint="they mean nothing to a model; remove them",
            param="messages",
        )
    chars: list[str] = []
    while len(chars) < 3 * _MARKER_LENGTH:
        char = chr(_FIRST + secrets.randbelow(_COUNT))
        if char not in used and char not in chars:
            chars.append(char)
    first, second = "".join(chars[:_MARKER_LENGTH]), "".join(chars[_MARKER_LENGTH : 2 * _MARKER_LENGTH])
    return first, second, "".join(chars[2 * _MARKER_LENGTH :])


def _split_error() -> RequestError:
    return RequestError(
        "a message contains a special token of this model, which its chat template splits",
        hint="remove the special token",
        param="messages",
    )
