"""Topic names, and the response topics at which a caller may be answered."""

from __future__ import annotations

import pytest

from edgekit.daemon.mqtt.topics import MAX_REPLY_TOPIC_BYTES, Topics, check_reply_topic
from edgekit.errors import ConfigError, RequestError


def test_topics_are_under_the_prefix_and_the_device() -> None:
    topics = Topics("site/edgekit", "orin-1")
    assert topics.request == "site/edgekit/orin-1/chat/request"
    assert topics.cancel == "site/edgekit/orin-1/chat/cancel"
    assert topics.refused == "site/edgekit/orin-1/chat/refused"
    assert topics.status == "site/edgekit/orin-1/status"
    assert topics.info == "site/edgekit/orin-1/info"
    assert topics.client_id == "site-edgekit-orin-1"


@pytest.mark.parametrize("device", ["", "a/b", "a+", "#", "$a", "a b", "a\tb", "x" * 65])
def test_a_device_id_that_is_no_topic_level_is_a_configuration_error(device: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.device_id"):
        Topics("edgekit", device)
    assert Topics("edgekit", "x" * 64).device == "x" * 64


@pytest.mark.parametrize("prefix", ["", "/a", "a/", "a//b", "a/+", "$SYS"])
def test_a_prefix_that_is_no_topic_is_a_configuration_error(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.prefix"):
        Topics(prefix, "orin-1")


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (None, "missing"),
        ("", "missing"),
        (7, "missing"),
        ("a\x00", "control character"),
        ("a\x9f", "control character"),
        ("a\ud800", "control character"),
        ("x" * (MAX_REPLY_TOPIC_BYTES + 1), "longer than 512 bytes"),
        ("é" * (MAX_REPLY_TOPIC_BYTES // 2) + "x", "longer than 512 bytes"),
        ("replies/+", "wildcard"),
        ("replies/#", "wildcard"),
        ("$SYS/x", r"begins with `\$`"),
        ("edgekit", "reserved for the devices"),
        ("edgekit/other/chat/request", "reserved for the devices"),
    ],
)
def test_a_response_topic_that_is_malformed_or_reserved_is_refused(topic: object, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        check_reply_topic(topic, prefix="edgekit")
    assert (caught.value.code, caught.value.param) == ("reply_topic_refused", "reply_to")


@pytest.mark.parametrize("topic", ["replies", "edgekits/x", "a/edgekit/b", "/", "a$", "x" * 512, "é" * 256, "a b"])
def test_any_other_response_topic_is_allowed(topic: str) -> None:
    assert check_reply_topic(topic, prefix="edgekit") == topic


def test_where_prefixes_are_given_a_response_topic_is_one_of_them_or_below() -> None:
    allowed = ["replies/", "app/out"]
    for topic in ("replies", "replies/a", "replies/a/b", "app/out", "app/out/7"):
        assert check_reply_topic(topic, prefix="edgekit", allowed=allowed) == topic
    for topic in ("repliesx", "app", "app/outer", "other"):
        with pytest.raises(RequestError, match="outside the allowed prefixes") as caught:
            check_reply_topic(topic, prefix="edgekit", allowed=allowed)
        assert caught.value.hint == "use one of: replies/…, app/out/…"
    with pytest.raises(RequestError, match="reserved"):
        check_reply_topic("edgekit/a", prefix="edgekit", allowed=["edgekit"])
