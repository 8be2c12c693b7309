"""Any payload is either parsed or refused, never a crash; and what the messages of the daemon contain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.daemon.api import parse_chat
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.coalesce import DeltaBatch
from edgekit.daemon.mqtt.topics import MAX_REPLY_TOPIC_BYTES, check_reply_topic
from edgekit.errors import RequestError
from edgekit.generation.types import TokenLogprob, ToolCallDelta

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(["id", "reply_to", "deadline_s", "messages", "stream", "model", "max_tokens", "stop"])


def accepted(topic: object) -> str | None:
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
        messages.encode(messages.error("x", 1, error))


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


def test_a_number_that_is_not_finite_is_refused_by_name() -> None:
    envelope = messages.read_envelope(messages.read_object(b'{"messages": [], "temperature": NaN}'))
    with pytest.raises(RequestError, match="`temperature` must be a finite number, not NaN") as caught:
        parse_chat(envelope.body, request_id="x")
    assert caught.value.param == "temperature"
    with pytest.raises(RequestError, match="deadline_s") as caught:
        messages.read_envelope(messages.read_object(b'{"deadline_s": NaN}'))
    assert caught.value.param == "deadline_s"


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=40) | st.text("ab/+#$\x00\ud800é", max_size=20) | st.integers() | st.none())
def test_an_accepted_reply_topic_can_be_published_to_and_is_not_ours(topic: object) -> None:
    reply_topic = accepted(topic)
    if reply_topic is None:
        return
    assert 0 < len(reply_topic.encode()) <= MAX_REPLY_TOPIC_BYTES
    assert not set("+#\x00") & set(reply_topic)
    assert not reply_topic.startswith("$")
    assert reply_topic != "a/b"
    assert not reply_topic.startswith("a/b/")


def test_the_digest_ignores_the_fields_that_may_differ_in_a_repeated_request() -> None:
    first = messages.read_envelope({"id": "1", "deadline_s": 3, "messages": [], "seed": 1})
    again = messages.read_envelope({"id": "1", "deadline_s": 9, "seed": 1, "messages": []})
    other = messages.read_envelope({"id": "1", "deadline_s": 3, "messages": [], "seed": 2})
    assert first.digest() == again.digest() != other.digest()


def test_an_envelope_separates_the_protocols_fields_from_the_body() -> None:
    envelope = messages.read_envelope(
        {"id": "7", "reply_to": "a/b", "deadline_s": 3, "stream": True, "messages": [], "seed": 1}
    )
    assert (envelope.id, envelope.reply_to, envelope.deadline_s, envelope.stream) == ("7", "a/b", 3.0, True)
    assert envelope.body == {"stream": True, "messages": [], "seed": 1}
    empty = messages.read_envelope({})
    assert (empty.id, empty.reply_to, empty.deadline_s, empty.stream, empty.body) == (None, None, None, False, {})


@pytest.mark.parametrize("stream", [False, None, 1, "true"])
def test_an_answer_is_streamed_only_if_the_request_says_true(stream: object) -> None:
    assert not messages.read_envelope({"stream": stream}).stream


YEAR_S = 366 * 86_400


@pytest.mark.parametrize("seconds", [0, -1, 0.5, YEAR_S, -YEAR_S])
def test_a_deadline_is_a_number_of_seconds_up_to_a_year(seconds: float) -> None:
    assert messages.read_envelope({"deadline_s": seconds}).deadline_s == seconds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline_s", YEAR_S + 1),
        ("deadline_s", -YEAR_S - 1),
        ("deadline_s", True),
        ("deadline_s", "3"),
        ("deadline_s", 10**400),
        ("id", 7),
        ("id", ""),
        ("id", "x" * (messages.MAX_ID_CHARS + 1)),
        ("id", "a\nb"),
        ("id", "\ud800"),
        ("reply_to", 7),
        ("reply_to", "a/\ud800"),
    ],
)
def test_a_field_of_the_protocol_that_is_malformed_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"`{field}`") as caught:
        messages.read_envelope({field: value})
    assert caught.value.param == field


def test_an_id_has_one_to_128_printable_characters() -> None:
    for text in ("x", "x" * 128, "a b/é"):
        assert messages.clean_id(text) == text
    for text in ("", "x" * 129, "a\tb"):
        assert messages.clean_id(text) is None


def test_a_message_is_compact_utf_8_and_half_of_a_surrogate_pair_a_question_mark() -> None:
    assert messages.encode({"a": ["é", 1], "b": "\ud800"}) == '{"a":["é",1],"b":"?"}'.encode()


def test_a_delta_has_only_the_fields_that_say_something() -> None:
    batch = DeltaBatch(0, "Hi")
    assert messages.delta("7", 2, 5, batch) == {"type": "delta", "id": "7", "attempt": 2, "seq": 5, "text": "Hi"}
    full = DeltaBatch(
        1, "", [TokenLogprob(1, b"a", -1.0)], [ToolCallDelta(0, 0, "{}", id="c", name="f")], "Hm.", "length"
    )
    message = messages.delta("7", 1, 0, full, logprobs=True)
    assert (message["index"], message["text"], message["reasoning_content"]) == (1, "", "Hm.")
    assert message["tool_calls"][0]["id"] == "c"
    assert message["logprobs"]["content"][0]["logprob"] == -1.0
    assert message["finish_reason"] == "length"
    assert "logprobs" not in messages.delta("7", 1, 0, full)
