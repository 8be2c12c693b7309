from __future__ import annotations

import json
import sys

import pytest

from edgekit.daemon.http.json_line import json_line


@pytest.mark.parametrize("text", ["naïve ☃ 日本語", "a\nb\r\nc", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"])
def test_no_string_breaks_the_line_and_it_round_trips(text: str) -> None:
    line = json_line({"text": text})
    assert line.splitlines() == [line]
    assert json.loads(line) == {"text": text}


def test_no_character_at_all_breaks_the_line() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    assert len(json_line(every).splitlines()) == 1


def test_characters_are_not_escaped() -> None:
    assert json_line(["é", "水"]) == '["é","水"]'
