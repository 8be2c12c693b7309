"""What a parser made of a text, in a shape that is easy to compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from edgekit.generation.request import Tool
from edgekit.generation.tools import CallArguments, CallStart, Piece, TextPiece, ToolFormat

__all__ = ["TOOLS", "cuts", "merged", "numbers", "parse"]

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "The weather.", CITY, strict=True), Tool("now"), Tool("find", parameters={"type": "object"}))


def numbers() -> Callable[[], str]:
    """Ids that count."""
    counted: Iterator[int] = itertools.count()
    return lambda: f"id{next(counted)}"


def parse(format_: ToolFormat, pieces: Sequence[str], **options: Any) -> list[Any]:
    """Run a new parser over a text in pieces and merge what comes out."""
    parser = format_.parser(numbers(), TOOLS, **options)
    found = [piece for text in pieces for piece in parser.push(text)]
    return merged([*found, *parser.finish()])


def merged(pieces: Sequence[Piece]) -> list[Any]:
    """Text as str, thoughts as ("thinking", text), calls as (id, name, arguments)."""
    out: list[Any] = []
    for piece in pieces:
        if isinstance(piece, CallStart):
            out.append((piece.id, piece.name, ""))
        elif isinstance(piece, CallArguments):
            assert piece.text
            out[-1] = (*out[-1][:2], out[-1][2] + piece.text)
        else:
            assert isinstance(piece, TextPiece)
            assert piece.text
            last = out[-1] if out else None
            if piece.thinking:
                if isinstance(last, tuple) and last[0] == "thinking":
                    out[-1] = ("thinking", last[1] + piece.text)
                else:
                    out.append(("thinking", piece.text))
            elif isinstance(last, str):
                out[-1] = last + piece.text
            else:
                out.append(piece.text)
    return out


def cuts(text: str) -> st.SearchStrategy[list[str]]:
    """The text in pieces, cut anywhere; some are empty."""
    places = st.lists(st.integers(0, len(text)), max_size=12).map(sorted)
    return places.map(lambda at: [text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])])
