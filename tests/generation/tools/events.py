"""Runs parsers and merges their events into a form that is easy to compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from edgekit.generation.tools import ArgumentsDelta, CallStart, ParserEvent, TextDelta, ToolFormat
from edgekit.generation.types import Tool

__all__ = ["TOOLS", "chunks", "counting_ids", "merged", "parse"]

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "The weather.", CITY, strict=True), Tool("now"), Tool("find", parameters={"type": "object"}))


def counting_ids() -> Callable[[], str]:
    """Ids with a counter."""
    counted: Iterator[int] = itertools.count()
    return lambda: f"id{next(counted)}"


def parse(format_: ToolFormat, parts: Sequence[str], **options: Any) -> list[Any]:
    """Run a new parser over a text in chunks and merge its events."""
    parser = format_.parser(counting_ids(), TOOLS, **options)
    events = [event for text in parts for event in parser.push(text)]
    return merged([*events, *parser.finish()])


def merged(events: Sequence[ParserEvent]) -> list[Any]:
    """Text as str, reasoning as ("thinking", text), calls as (id, name, arguments)."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, CallStart):
            out.append((event.id, event.name, ""))
        elif isinstance(event, ArgumentsDelta):
            assert event.text
            out[-1] = (*out[-1][:2], out[-1][2] + event.text)
        else:
            assert isinstance(event, TextDelta)
            assert event.text
            last = out[-1] if out else None
            if event.thinking:
                if isinstance(last, tuple) and last[0] == "thinking":
                    out[-1] = ("thinking", last[1] + event.text)
                else:
                    out.append(("thinking", event.text))
            elif isinstance(last, str):
                out[-1] = last + event.text
            else:
                out.append(event.text)
    return out


def chunks(text: str) -> st.SearchStrategy[list[str]]:
    """The text in chunks, split anywhere; some are empty."""
    positions = st.lists(st.integers(0, len(text)), max_size=12).map(sorted)
    return positions.map(lambda at: [text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])])
