"""What no message has carried yet is carried whole, in order, and never in a message that is too large."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.mqtt.pieces import Batch, Pending
from edgekit.generation.request import Delta, Ended, TokenLogprob, ToolCallDelta

TOKEN = TokenLogprob(1, b"a", -1.0)


def pending(*pieces: Delta | ToolCallDelta | Ended) -> Pending:
    made = Pending()
    for piece in pieces:
        made.add(piece)
    return made


def drain(waiting: Pending, limit: int) -> list[Batch]:
    batches = []
    while waiting:
        taken = waiting.take(limit)
        assert taken, "nothing was taken of what is pending"
        batches += taken
    return batches


def test_text_is_joined_and_cut_between_characters() -> None:
    batches = drain(pending(Delta(0, "ab"), Delta(1, "c🗼"), Delta(2, "é")), 2)
    assert [batch.text for batch in batches] == ["ab", "c🗼", "é"]
    (whole,) = pending(Delta(0, "ab"), Delta(1, "c")).take(99)
    assert whole == Batch(0, "abc")


def test_a_batch_is_taken_of_each_answer() -> None:
    waiting = pending(Delta(0, "a"), Delta(1, "x", index=1), Delta(2, "b"))
    assert waiting.take(99) == [Batch(0, "ab"), Batch(1, "x")]
    assert not waiting


def test_pieces_of_one_call_are_joined_and_its_name_comes_once() -> None:
    waiting = pending(
        Delta(0, "Let me see."),
        ToolCallDelta(1, 0, "", id="c0", name="f"),
        ToolCallDelta(2, 0, '{"a"'),
        ToolCallDelta(3, 0, ": 1}"),
        ToolCallDelta(4, 1, "{}", id="c1", name="g"),
        Delta(5, "Done."),
    )
    first, second = drain(waiting, 99)
    assert first.text == "Let me see."
    assert [(call.number, call.id, call.name, call.arguments) for call in first.calls] == [
        (0, "c0", "f", '{"a": 1}'),
        (1, "c1", "g", "{}"),
    ]
    # Text that follows a call comes after it.
    assert (second.text, second.calls) == ("Done.", [])


def test_long_arguments_are_cut_and_named_once() -> None:
    batches = drain(pending(ToolCallDelta(0, 0, "0123456789", id="c", name="f")), 4)
    calls = [call for batch in batches for call in batch.calls]
    assert [call.arguments for call in calls] == ["0123", "4567", "89"]
    assert [(call.id, call.name) for call in calls] == [("c", "f"), (None, None), (None, None)]


def test_many_log_probabilities_take_several_messages() -> None:
    batches = drain(pending(Delta(0, "a" * 10, logprobs=(TOKEN,) * 10)), 200)
    assert [(batch.text, len(batch.logprobs)) for batch in batches] == [("a" * 10, 2), ("", 3), ("", 3), ("", 2)]


def test_an_empty_piece_is_nothing() -> None:
    assert not pending(Delta(0, ""))


@given(text=st.text(min_size=1, max_size=40), limit=st.integers(1, 50))
def test_the_end_of_an_answer_comes_with_the_last_of_it(text: str, limit: int) -> None:
    waiting = pending(Delta(0, text, 1), Delta(1, "other", 0), Ended(1, "length"))
    batches = drain(waiting, limit)
    mine = [batch for batch in batches if batch.index == 1]
    assert "".join(batch.text for batch in mine) == text
    assert [batch.reason for batch in mine] == [None] * (len(mine) - 1) + ["length"]
    assert {batch.reason for batch in batches if batch.index == 0} == {None}


_PIECES = st.lists(
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


@given(pieces=_PIECES, limit=st.integers(1, 300), chunk=st.integers(1, 5))
def test_nothing_is_lost_doubled_or_swapped(pieces: list[Delta | ToolCallDelta], limit: int, chunk: int) -> None:
    waiting = Pending()
    batches: list[Batch] = []
    for number, piece in enumerate(pieces):
        waiting.add(piece)
        if number % chunk == 0:
            batches += waiting.take(limit)
    batches += drain(waiting, limit)
    sent: dict[int, str] = defaultdict(str)
    came: dict[int, str] = defaultdict(str)
    for piece in pieces:
        sent[piece.index] += _flat(piece)
    for batch in batches:
        came[batch.index] += f"{batch.text}" + "".join(map(_flat, batch.calls))
        assert len(batch.text) <= limit
    assert {index: text for index, text in came.items() if text} == {i: text for i, text in sent.items() if text}
    tokens = sum(len(piece.logprobs) for piece in pieces if isinstance(piece, Delta))
    assert sum(len(batch.logprobs) for batch in batches) == tokens


def _flat(piece: Delta | ToolCallDelta) -> str:
    return piece.text if isinstance(piece, Delta) else piece.arguments
