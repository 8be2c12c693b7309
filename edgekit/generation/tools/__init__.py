"""Function calling: one file per format that models write their calls in.

A format says how calls look in a model's text: it has a parser that finds them as the text comes, and a grammar that
holds the model to them. It knows no tokens beyond the ids of its markers, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.generation.tools.base import CallArguments, CallStart, Piece, TextPiece, ToolFormat
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.tools.llama3 import Llama3
from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.tools.qwen3 import Qwen3

__all__ = [
    "CallArguments",
    "CallStart",
    "Piece",
    "TextPiece",
    "ToolFormat",
    "ToolParser",
    "find_format",
    "find_reasoning",
]

# The first that recognises a template is taken: Qwen3's calls are Hermes' calls.
_FORMATS: tuple[type[ToolFormat], ...] = (Mistral, Qwen3, Hermes, Llama3)


def find_format(source: str, tokens: Mapping[str, int]) -> ToolFormat | None:
    """Return the format that a chat template teaches its model, or None if it knows no tools.

    Args:
        source: The chat template.
        tokens: Special tokens of the tokenizer: text and id. What is not among them is written in characters.
    """
    if "tools" not in source:
        return None
    for kind in _FORMATS:
        if kind.matches(source):
            return kind(source, tokens)
    return None


def find_reasoning(source: str, tokens: Mapping[str, int]) -> ToolFormat | None:
    """Return the format that tells a model's reasoning from its answer, without tools; None if it does not reason.

    Args:
        source: As for `find_format`.
        tokens: Likewise.
    """
    return Qwen3(source, tokens) if Qwen3.reasons(source) else None
