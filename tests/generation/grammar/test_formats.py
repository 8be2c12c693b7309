"""Strings generated for a format are accepted by libraries that parse it."""

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


def _moment(parse: Callable[[str], object]) -> Callable[[str], object]:
    def check(text: str) -> object:
        # Python 3.10 parses neither Z nor fractions other than three or six digits.
        return parse(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))

    return check


def _email(text: str) -> object:
    local, _, domain = text.rpartition("@")
    return re.fullmatch(r"[^\s@.]+(\.[^\s@.]+)*", local) and domain and len(text) <= 254


def _hostname(text: str) -> object:
    labels = text.split(".")
    return len(text) <= 253 and all(
        re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", label) for label in labels
    )


def _uri(text: str) -> object:
    return urlsplit(text).scheme and re.fullmatch(r"[!-~]+", text)


def _reference(text: str) -> object:
    urlsplit(text)
    return re.fullmatch(r"(?:[!#-;=?-Z_a-z~\[\]]|%[0-9A-Fa-f]{2})*", text)


def _iri(text: str) -> object:
    return urlsplit(text).scheme and _iri_reference(text)


def _iri_reference(text: str) -> object:
    return _reference(re.sub(r"[^\x00-\x9f\ue000-\uf8ff]", "a", text))


def _template(text: str) -> object:
    return _reference(re.sub(r"\{[+#./;?&]?[\w%.]+(?::\d+|\*)?(?:,[\w%.]+(?::\d+|\*)?)*\}", "a", text, flags=re.ASCII))


def _pointer(text: str) -> object:
    return not text or (text.startswith("/") and not re.search(r"~(?![01])", text))


# With and without an authority.
ABSOLUTE = (
    *("https://u:p@example.org:80/a/b?c=d&e#f", "http://a", "file:///etc/x", "mailto:a@b.org", "data:text/plain,A%20B"),
    *("urn:uuid:123e4567-e89b-12d3-a456-426614174000", "arn:aws:s3:::bucket", "x:", "tag:x@y.org,2020:z/a"),
)
RELATIVE = ("", "a", "../a#b", "/a//b", "//host:80/path", "?q", "#f", "a/b:c")
NO_ADDRESSES = ("x y", "%4", "a%zz", "http://a:b:c/", "http://a#b#c", "http://[::1", "1a:b", "http://a/{b}", '"', "<a>")

PARSERS: dict[str, Callable[[str], object]] = {
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
    "uri": _uri,
    "iri": _iri,
    "uri-reference": _reference,
    "iri-reference": _iri_reference,
    "uri-template": _template,
    "idn-email": _email,
    "idn-hostname": _hostname,
    "json-pointer": _pointer,
    "relative-json-pointer": lambda text: (
        (found := re.match(r"0|[1-9]\d*", text)) and (text[found.end() :] == "#" or _pointer(text[found.end() :]))
    ),
    "regex": re.compile,
}


def test_every_format_is_tested() -> None:
    assert PARSERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", PARSERS)
def test_a_string_of_a_format_is_accepted_by_a_library_for_it(name: str) -> None:
    used = kit("byte_level")
    grammar = used.schema({"type": "string", "format": name})
    ended = 0
    for seed in range(60):
        tokens, end = walk(used, grammar, seed, max_tokens=300)
        if end:
            ended += 1
            text = json.loads(text_of(used, tokens))
            assert PARSERS[name](text) is not None, text
            assert PARSERS[name](text) is not False, text
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
        *((name, text, True) for name in ("uri", "uri-reference", "iri", "iri-reference") for text in ABSOLUTE),
        *((name, text, True) for name in ("uri-reference", "iri-reference") for text in RELATIVE),
        *((name, text, False) for name in ("uri", "iri") for text in RELATIVE),
        *((name, text, True) for name in ("iri", "iri-reference") for text in ("http://é.org/ü?日#本", "urn:é")),
        *((name, text, False) for name in ("uri", "uri-reference") for text in ("http://é.org/ü?日#本", "urn:é")),
        *((name, text, False) for name in ("uri", "uri-reference", "iri", "iri-reference") for text in NO_ADDRESSES),
        *(("uri-template", text, True) for text in ("/x/{id}/y{?q,r*}", "{+path:3}", "http://a.org/{a.b}", "a")),
        *(("uri-template", text, False) for text in ("{", "{}", "/x/{a", "{a,}", "{a:0}", "{?}", "a b")),
    ],
)
def test_a_format_accepts_what_it_should(name: str, text: str, good: bool) -> None:
    used = kit("byte_level")
    matcher = used.schema({"type": "string", "format": name}).matcher()
    tokens = used.tokenizer.encode(json.dumps(text, ensure_ascii=False), obey_special=False)
    assert (matcher.fits(tokens) == len(tokens)) is good
