"""Reading what callers send: whatever it is, it is read or refused, never stumbled over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.topics import MAX_REPLY_TOPIC_BYTES, check_reply_topic
from edgekit.daemon.wire import parse_chat
from edgekit.errors import RequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(["id", "reply_to", "deadline_s", "messages", "stream", "model", "max_tokens", "stop"])


def let_through(topic: object) -> str | None:
    try:
        return check_reply_topic(topic, prefix="a/b", allowed=())
    except RequestError:
        return None


def read(payload: bytes) -> None:
    try:
        envelope = messages.read_envelope(messages.read_object(payload))
        envelope.digest()
        parse_chat(envelope.body, request_id="x")
    except RequestError as error:
        messages.encode(messages.error("x", error))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(payload: bytes) -> None:
    read(payload)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(FIELDS, JSON))
def test_objects_of_any_kind_are_read_or_refused(body: dict[str, Any]) -> None:
    read(json.dumps(body).encode())


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(RequestError):
        parse_chat(messages.read_object(b'{"messages":' + b"[" * depth + b"]" * depth + b"}"), request_id="x")


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=40) | st.text("ab/+#$\x00\ud800é", max_size=20) | st.integers() | st.none())
def test_a_reply_topic_that_is_let_through_can_be_published_to_and_is_not_ours(topic: object) -> None:
    good = let_through(topic)
    if good is None:
        return
    assert 0 < len(good.encode()) <= MAX_REPLY_TOPIC_BYTES
    assert not set("+#\x00") & set(good)
    assert not good.startswith("$")
    assert good != "a/b"
    assert not good.startswith("a/b/")


def test_the_digest_ignores_what_may_differ_when_the_same_thing_is_asked_again() -> None:
    first = messages.read_envelope({"id": "1", "deadline_s": 3, "messages": [], "seed": 1})
    again = messages.read_envelope({"id": "1", "deadline_s": 9, "seed": 1, "messages": []})
    other = messages.read_envelope({"id": "1", "deadline_s": 3, "messages": [], "seed": 2})
    assert first.digest() == again.digest() != other.digest()
