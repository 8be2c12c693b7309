from __future__ import annotations

from typing import Any

import pytest

from edgekit.client import Restarted
from edgekit.client.reply import ReplyReader
from edgekit.errors import EdgekitError
from edgekit.generation.types import Delta, Finished, ToolCallDelta


def delta(attempt: int, seq: int, text: str) -> dict[str, Any]:
    return {"type": "delta", "id": "1", "attempt": attempt, "seq": seq, "text": text}


def final(attempt: int, seq: int, content: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"type": "final", "id": "1", "attempt": attempt, "seq": seq, "message": message, "finish_reason": "stop"}


def read(*messages: dict[str, Any]) -> list[Delta | ToolCallDelta | Restarted | Finished]:
    reader = ReplyReader()
    return [event for message in messages for event in reader.read(message)]


def text(events: list[Delta | ToolCallDelta | Restarted | Finished]) -> str:
    """The text that a caller has in the end."""
    received = ""
    for event in events:
        if isinstance(event, Restarted):
            received = ""
        elif isinstance(event, Delta):
            received += event.text
    return received


def test_a_new_attempt_replaces_the_deltas_of_the_old_one() -> None:
    events = read(
        delta(3, 0, "Par"),
        delta(3, 1, "is is"),
        delta(1003, 0, "The "),
        delta(1003, 1, "capital"),
        final(1003, 2, "The capital"),
    )
    assert [event for event in events if isinstance(event, Restarted)] == [Restarted()]
    assert text(events) == "The capital"
    restart = events.index(Restarted())
    assert [event.seq for event in events[restart:] if isinstance(event, Delta)] == [0, 1]


def test_a_new_attempt_before_the_first_delta_is_no_restart() -> None:
    events = read(delta(7, 0, "Paris"), final(7, 1, "Paris"))
    assert Restarted() not in events


@pytest.mark.parametrize("late", [delta(3, 2, "?"), delta(3, 9, "?"), final(3, 2, "Rome")])
def test_late_messages_of_an_older_attempt_are_ignored(late: dict[str, Any]) -> None:
    events = read(delta(3, 0, "Ro"), delta(4, 0, "Par"), late, delta(4, 1, "is"), final(4, 2, "Paris"))
    assert text(events) == "Paris"
    assert len([event for event in events if isinstance(event, Finished)]) == 1


def test_an_older_attempts_error_does_not_end_the_reply() -> None:
    error = {"type": "error", "id": "1", "attempt": 3, "error": {"code": "shutting_down", "message": "stopping"}}
    assert text(read(delta(4, 0, "Par"), error, final(4, 1, "Paris"))) == "Paris"
    with pytest.raises(EdgekitError, match="stopping"):
        read(delta(4, 0, "Par"), {**error, "attempt": 4})


def test_repeated_deliveries_are_ignored_and_lost_deltas_are_taken_from_the_final_message() -> None:
    first, second, fourth = delta(1, 0, "a"), delta(1, 1, "b"), delta(1, 3, "d")
    assert text(read(first, second, first, second, fourth, fourth, final(1, 4, "abcd"))) == "abcd"


def test_replies_without_attempts_are_read() -> None:
    messages = [delta(0, 0, "Par"), delta(0, 1, "is"), final(0, 2, "Paris")]
    for message in messages:
        del message["attempt"]
    assert text(read(*messages)) == "Paris"


def test_a_final_message_alone_is_the_whole_answer_after_a_restart() -> None:
    events = read(delta(1, 0, "Ro"), final(2, 0, "Paris"))
    assert Restarted() in events
    assert text(events) == "Paris"


def test_tool_calls_are_those_of_the_newest_attempts_final_message() -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    end = final(2, 1, None)
    end["message"]["tool_calls"] = [call]
    *events, last = read(delta(1, 0, "Let me"), delta(2, 0, "Hm."), end)
    assert events[2:] == [Delta(0, "Hm."), ToolCallDelta(1, 0, '{"city": "Oslo"}', id="call_0", name="weather")]
    assert isinstance(last, Finished)
