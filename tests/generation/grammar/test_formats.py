"""Texts made for a format are read by the libraries that read such texts."""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from urllib.parse import urlsplit

import pytest

from edgekit.generation.grammar.keywords import FORMATS
from tests.generation.grammar.kits import kit, text_of, walk


def _moment(read: Callable[[str], object]) -> Callable[[str], object]:
    def check(text: str) -> object:
        # Python 3.10 reads neither Z nor other than three or six digits of a second.
        return read(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))

    return check


def _email(text: str) -> object:
    local, _, domain = text.rpartition("@")
    return re.fullmatch(r"[^\s@.]+(\.[^\s@.]+)*", local) and domain and len(text) <= 254


def _hostname(text: str) -> object:
    labels = text.split(".")
    return len(text) <= 253 and all(
        re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", label) for label in labels
    )


READERS: dict[str, Callable[[str], object]] = {
    "date": date.fromisoformat,
    "time": _moment(time.fromisoformat),
    "date-time": _moment(datetime.fromisoformat),
    "duration": lambda text: (
        re.fullmatch(r"P(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)", text) and text != "P"
    ),
    "email": _email,
    "hostname": _hostname,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "uri": lambda text: urlsplit(text).scheme and re.fullmatch(r"[!-~]+", text),
}


def test_every_format_is_read() -> None:
    assert READERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", READERS)
def test_a_text_of_a_format_is_read_by_those_who_know_it(name: str) -> None:
    used = kit("byte_level")
    grammar = used.schema({"type": "string", "format": name})
    ended = 0
    for seed in range(60):
        tokens, end = walk(used, grammar, seed, most=300)
        if end:
            ended += 1
            text = json.loads(text_of(used, tokens))
            assert READERS[name](text) is not None, text
            assert READERS[name](text) is not False, text
    assert ended > 20


@pytest.mark.parametrize(
    ("name", "text", "good"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "1900-02-29", False),
        ("date", "2000-02-29", True),
        ("date", "2023-04-31", False),
        ("date", "0000-01-01", False),
        ("time", "23:59:60Z", False),
        ("time", "12:00:00", False),
        ("date-time", "2024-01-31T23:59:59.123456789+14:00", True),
        ("ipv4", "256.1.1.1", False),
        ("uuid", "123e4567-e89b-12d3-a456-42661417400", False),
        ("hostname", "-a.example", False),
    ],
)
def test_a_format_takes_what_it_should(name: str, text: str, good: bool) -> None:
    used = kit("byte_level")
    matcher = used.schema({"type": "string", "format": name}).matcher()
    tokens = used.tokenizer.encode(json.dumps(text), obey_special=False)
    assert (matcher.fits(tokens) == len(tokens)) is good
