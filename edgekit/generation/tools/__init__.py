"""Tool calling: one file per tool-call format.

A format describes how a family of models writes tool calls: it provides a streaming parser and a grammar for
constrained decoding.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.generation.tools.base import ToolFormat
from edgekit.generation.tools.events import ArgumentsDelta, CallStart, ParserEvent, TextDelta
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.tools.lark import ANY_OBJECT
from edgekit.generation.tools.llama3 import Llama3
from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.tools.qwen3 import Qwen3

__all__ = [
    "ANY_OBJECT",
    "ArgumentsDelta",
    "CallStart",
    "ParserEvent",
    "TextDelta",
    "ToolFormat",
    "ToolParser",
    "find_format",
    "find_reasoning",
]

# The first format that matches a template is used; Qwen3 is before Hermes because it extends it.
_FORMATS: tuple[type[ToolFormat], ...] = (Mistral, Qwen3, Hermes, Llama3)


def find_format(source: str, tokens: Mapping[str, int]) -> ToolFormat | None:
    """Return the tool-call format of a chat template, or None if the template does not support tools.

    Args:
        source: The chat template.
        tokens: The tokenizer's special tokens, text to id. Markers that are not among them are ordinary text.
    """
    if "tools" not in source:
        return None
    for kind in _FORMATS:
        if kind.matches(source):
            return kind(source, tokens)
    return None


def find_reasoning(source: str, tokens: Mapping[str, int]) -> ToolFormat | None:
    """Return the format that separates reasoning from the answer, without tools; None for a template without reasoning.

    Args:
        source: As for `find_format`.
        tokens: As for `find_format`.
    """
    return Qwen3(source, tokens) if Qwen3.reasons(source) else None
