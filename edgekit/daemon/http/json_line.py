"""JSON on one line, by any client's definition of a line break."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_line"]

# Line breaks of Unicode and `str.splitlines`, at which httpx, and so Ollama's SDK, splits a stream; JSON always escapes
# the other ones.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def json_line(value: Any) -> str:
    """Return a value as JSON without line breaks; other characters are not escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)
