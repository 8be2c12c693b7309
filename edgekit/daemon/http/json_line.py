"""JSON on one line, whatever a client takes for the end of one."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_line"]

# Ends of lines to Unicode and to Python's `str.splitlines`, by which httpx cuts a stream (and so Ollama's SDK); JSON
# escapes the others of them anyway.
_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def json_line(value: Any) -> str:
    """Return a value as JSON in which nothing ends a line; characters stay as they are otherwise."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ENDS)
