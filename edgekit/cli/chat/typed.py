"""The forms of what a user types: commands, and blocks of lines in triple quotes."""

from __future__ import annotations

import re

__all__ = ["is_command", "is_open_block", "unquote"]

_QUOTES = '"""'
# A text may begin with quotes, and so may a command's argument.
_OPENING = re.compile(r'\s*(?:/[a-z]+(?:\s+[a-z]+)?\s+)?"""')


_COMMAND = re.compile(r"\s*/[A-Za-z?]*(\s|$)")
# The commands whose argument may have several lines.
_LONG_COMMAND = re.compile(r"\s*/(system|set\s+system)\s", re.IGNORECASE)


def is_command(text: str) -> bool:
    """Whether the text is a command rather than a message.

    `/help` is; `/etc/hosts is what?` is not, nor is a pasted block that happens to begin with `/bye`.
    """
    pattern = _LONG_COMMAND if "\n" in text.strip() else _COMMAND
    return pattern.match(text) is not None


def is_open_block(text: str) -> bool:
    """Whether the text begins with triple quotes that are not closed yet."""
    return _OPENING.match(text) is not None and text.count(_QUOTES) % 2 == 1


def unquote(text: str) -> str:
    """Remove the triple quotes around a block of lines, and blank space around any text."""
    stripped = text.strip()
    if not stripped.startswith(_QUOTES):
        return stripped
    return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
