"""Pending deltas are sent completely, in order, and in messages within the size limit."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.mqtt.coalesce import DeltaBatch, DeltaBuffer
from edgekit.generation.types import ChoiceFinished, Delta, TokenLogprob, ToolCallDelta

TOKEN = TokenLogprob(1, b"a", -1.0)


def buffered(*deltas: Delta | ToolCallDelta | ChoiceFinished) -> DeltaBuffer:
    buffer = DeltaBuffer()
    for delta in deltas:
        buffer.add(delta)
    return buffer


def drain(buffer: DeltaBuffer, limit: int) -> list[DeltaBatch]:
    batches = []
    while buffer:
        taken = buffer.take(limit)
        assert taken, "a buffer that is not empty gave no batch"
        batches += taken
    return batches


def test_text_is_joined_and_cut_between_characters() -> None:
    batches = drain(buffered(Delta(0, "ab"), Delta(1, "c🗼"), Delta(2, "é")), 2)
    assert [batch.text for batch in batches] == ["ab", "c🗼", "é"]
    (batch,) = buffered(Delta(0, "ab"), Delta(1, "c")).take(99)
    assert batch == DeltaBatch(0, "abc")


def test_a_batch_is_taken_of_each_answer() -> None:
    buffer = buffered(Delta(0, "a"), Delta(1, "x", index=1), Delta(2, "b"))
    assert buffer.take(99) == [DeltaBatch(0, "ab"), DeltaBatch(1, "x")]
    assert not buffer


def test_deltas_of_one_tool_call_are_joined_and_its_name_comes_once() -> None:
    buffer = buffered(
        Delta(0, "Let me see."),
        ToolCallDelta(1, 0, "", id="c0", name="f"),
        ToolCallDelta(2, 0, '{"a"'),
        ToolCallDelta(3, 0, ": 1}"),
        ToolCallDelta(4, 1, "{}", id="c1", name="g"),
        Delta(5, "Done."),
    )
    first, second = drain(buffer, 99)
    assert first.text == "Let me see."
    assert [(call.number, call.id, call.name, call.arguments) for call in first.calls] == [
        (0, "c0", "f", '{"a": 1}'),
        (1, "c1", "g", "{}"),
    ]
    # Text that follows a call comes after it.
    assert (second.text, second.calls) == ("Done.", [])


def test_long_arguments_are_split_and_named_once() -> None:
    batches = drain(buffered(ToolCallDelta(0, 0, "0123456789", id="c", name="f")), 4)
    calls = [call for batch in batches for call in batch.calls]
    assert [call.arguments for call in calls] == ["0123", "4567", "89"]
    assert [(call.id, call.name) for call in calls] == [("c", "f"), (None, None), (None, None)]


def test_many_log_probabilities_take_several_messages() -> None:
    batches = drain(buffered(Delta(0, "a" * 10, logprobs=(TOKEN,) * 10)), 200)
    assert [(batch.text, len(batch.logprobs)) for batch in batches] == [("a" * 10, 2), ("", 3), ("", 3), ("", 2)]


def test_a_log_probability_larger_than_a_message_is_sent_alone() -> None:
    batches = drain(buffered(Delta(0, "", logprobs=(TOKEN,))), 10)
    assert [(batch.text, len(batch.logprobs)) for batch in batches] == [("", 1)]
    batches = drain(buffered(Delta(0, "", logprobs=(TOKEN,) * 2), Delta(1, "a")), 10)
    assert [(batch.text, len(batch.logprobs)) for batch in batches] == [("", 1), ("", 1), ("a", 0)]
    # One with alternatives takes as much more room.
    many = TokenLogprob(1, b"a", -1.0, ((1, b"a", -1.0), (2, b"b", -2.0)))
    batches = drain(buffered(Delta(0, "", logprobs=(many,) * 4)), 3 * 64 * 2)
    assert [len(batch.logprobs) for batch in batches] == [2, 2]


def test_arguments_and_text_that_fit_exactly_are_not_split() -> None:
    (batch,) = drain(buffered(Delta(0, "abc"), ToolCallDelta(1, 0, "{}", id="id", name="n")), 8)
    assert (batch.text, [call.arguments for call in batch.calls]) == ("abc", ["{}"])
    first, second = drain(buffered(Delta(0, "abcd"), Delta(1, "e")), 4)
    assert (first.text, second.text) == ("abcd", "e")


def test_an_empty_delta_is_dropped() -> None:
    assert not buffered(Delta(0, ""))


@given(text=st.text(min_size=1, max_size=40), limit=st.integers(1, 50))
def test_the_end_of_an_answer_comes_with_its_last_text(text: str, limit: int) -> None:
    buffer = buffered(Delta(0, text, 1), Delta(1, "other", 0), ChoiceFinished(1, "length"))
    batches = drain(buffer, limit)
    mine = [batch for batch in batches if batch.index == 1]
    assert "".join(batch.text for batch in mine) == text
    assert [batch.reason for batch in mine] == [None] * (len(mine) - 1) + ["length"]
    assert {batch.reason for batch in batches if batch.index == 0} == {None}


_DELTAS = st.lists(
    st.builds(
        Delta,
        st.just(0),
        st.text(max_size=9),
        st.integers(0, 2),
        st.lists(st.just(TOKEN), max_size=4).map(tuple),
    )
    | st.builds(
        ToolCallDelta,
        st.just(0),
        st.integers(0, 1),
        st.text(max_size=9),
        st.none() | st.just("id"),
        st.none() | st.just("name"),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(deltas=_DELTAS, limit=st.integers(1, 300), every=st.integers(1, 5))
def test_nothing_is_lost_doubled_or_swapped(deltas: list[Delta | ToolCallDelta], limit: int, every: int) -> None:
    buffer = DeltaBuffer()
    batches: list[DeltaBatch] = []
    for number, delta in enumerate(deltas):
        buffer.add(delta)
        if number % every == 0:
            batches += buffer.take(limit)
    batches += drain(buffer, limit)
    sent: dict[int, str] = defaultdict(str)
    received: dict[int, str] = defaultdict(str)
    for delta in deltas:
        sent[delta.index] += _text(delta)
    for batch in batches:
        received[batch.index] += f"{batch.text}" + "".join(map(_text, batch.calls))
        assert len(batch.text) <= limit
    assert {index: text for index, text in received.items() if text} == {i: text for i, text in sent.items() if text}
    tokens = sum(len(delta.logprobs) for delta in deltas if isinstance(delta, Delta))
    assert sum(len(batch.logprobs) for batch in batches) == tokens


def _text(delta: Delta | ToolCallDelta) -> str:
    return delta.text if isinstance(delta, Delta) else delta.arguments


def test_ids_and_names_of_tool_calls_count_towards_the_limit() -> None:
    calls = [ToolCallDelta(number, number, "{}", id="id", name="name") for number in range(6)]
    for limit, expected in ((8, [1] * 6), (16, [2] * 3), (24, [3] * 2), (48, [6])):
        assert [len(batch.calls) for batch in drain(buffered(*calls), limit)] == expected
