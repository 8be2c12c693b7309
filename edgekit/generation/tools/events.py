"""Events that a tool-call parser emits while it reads a model's output."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ArgumentsDelta", "CallStart", "ParserEvent", "TextDelta"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer or of the reasoning before it.

    Attributes:
        thinking: The text belongs to the model's reasoning.
        delimiter: A tag or white space around the reasoning. Delimiters are emitted so that all text together is
            exactly what the model generated; consumers that separate reasoning from the answer drop them.
    """

    text: str
    thinking: bool = False
    delimiter: bool = False


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A fragment of the arguments' JSON text, for the call that began last."""

    text: str


ParserEvent = TextDelta | CallStart | ArgumentsDelta
