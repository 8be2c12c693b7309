"""The reply cache stays within its limits."""

from __future__ import annotations

from edgekit.daemon.mqtt.requests import CachedReply, ReplyCache


def test_a_full_cache_evicts_the_oldest_replies() -> None:
    cache = ReplyCache(max_entries=3)
    for number in range(5):
        cache.put(("topic", str(number), None), CachedReply(1, b"d", b"payload", 0.0))
    found = [cache.get(("topic", str(number), None), b"d", 0.0) is not None for number in range(5)]
    assert found == [False] * 2 + [True] * 3


def test_the_cache_is_limited_in_bytes_too() -> None:
    cache = ReplyCache(max_bytes=100)
    for number in range(5):
        cache.put(("topic", str(number), None), CachedReply(1, b"d", b"x" * 40, 0.0))
    assert len(cache) == 2
    cache.put(("topic", "giant", None), CachedReply(1, b"d", b"x" * 101, 0.0))
    assert len(cache) == 0


def test_a_reply_is_found_by_topic_id_and_body_until_it_is_too_old() -> None:
    cache = ReplyCache(max_age_s=10)
    cache.put(("topic", "1", None), CachedReply(1, b"d", b"payload", 100.0))
    assert cache.get(("topic", "1", None), b"d", 110.0) is not None
    assert cache.get(("other", "1", None), b"d", 100.0) is None
    assert cache.get(("topic", "1", None), b"e", 100.0) is None
    assert cache.get(("topic", "1", None), b"d", 110.1) is None
    assert len(cache) == 0
