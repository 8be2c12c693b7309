"""Messages to publish, and their size."""

from __future__ import annotations

import pytest
from paho.mqtt.packettypes import PacketTypes

from edgekit.daemon.mqtt.outgoing import Outgoing


@pytest.mark.parametrize(
    "message",
    [
        Outgoing("a/b", b"payload"),
        Outgoing("é" * 20, b""),
        Outgoing("a", b"x" * 300, correlation=b"c" * 90),
        Outgoing("a", b"x", correlation=b"c", content_type="application/json"),
    ],
)
def test_a_packet_is_at_most_as_large_as_its_upper_bound(message: Outgoing) -> None:
    topic = message.topic.encode()
    # MQTT 5, section 3.3: a byte and up to four of length, the topic with its length, the packet identifier.
    properties: bytes = message.properties().pack()  # type: ignore[no-untyped-call]  # unannotated in paho
    packet = 1 + 4 + 2 + len(topic) + 2 + len(properties) + len(message.payload)
    assert packet <= message.packet_bytes <= packet + 32


def test_a_message_has_the_properties_that_are_set() -> None:
    assert message_properties(Outgoing("a", b"")) == {}
    both = Outgoing("a", b"", correlation=b"c", content_type="application/json")
    assert message_properties(both) == {
        "CorrelationData": b"c",
        "ContentType": "application/json",
        "PayloadFormatIndicator": 1,
    }
    assert message_properties(Outgoing("a", b"", correlation=b"")) == {"CorrelationData": b""}


def message_properties(message: Outgoing) -> dict[str, object]:
    found = message.properties()
    assert found.packetType == PacketTypes.PUBLISH
    assert message.properties(will=True).packetType == PacketTypes.WILLMESSAGE
    names = ("CorrelationData", "ContentType", "PayloadFormatIndicator")
    return {name: getattr(found, name) for name in names if hasattr(found, name)}


def test_a_message_is_sent_again_after_a_reconnect_and_not_retained_unless_it_says_so() -> None:
    message = Outgoing("a", b"")
    assert message.durable
    assert not message.retain
