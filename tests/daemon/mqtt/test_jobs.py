"""The record of answers given lately stays within its bounds."""

from __future__ import annotations

from edgekit.daemon.mqtt.jobs import Finished, Record


def test_the_record_forgets_the_oldest_when_it_is_full() -> None:
    record = Record(max_entries=3)
    for number in range(5):
        record.put(("topic", str(number)), Finished(b"d", b"payload", 0.0))
    assert [record.get(("topic", str(number)), b"d", 0.0) is not None for number in range(5)] == [False] * 2 + [
        True
    ] * 3


def test_the_record_is_bounded_in_bytes_too() -> None:
    record = Record(max_bytes=100)
    for number in range(5):
        record.put(("topic", str(number)), Finished(b"d", b"x" * 40, 0.0))
    assert len(record) == 2
    record.put(("topic", "giant"), Finished(b"d", b"x" * 101, 0.0))
    assert len(record) == 0


def test_the_record_knows_an_answer_by_topic_id_and_body_and_only_for_a_while() -> None:
    record = Record(max_age_s=10)
    record.put(("topic", "1"), Finished(b"d", b"payload", 100.0))
    assert record.get(("topic", "1"), b"d", 110.0) is not None
    assert record.get(("other", "1"), b"d", 100.0) is None
    assert record.get(("topic", "1"), b"e", 100.0) is None
    assert record.get(("topic", "1"), b"d", 110.1) is None
    assert len(record) == 0
