from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.chat.stop_strings import StopFilter

_SMALL = st.text("abc", min_size=1, max_size=4)


@given(chunks=st.lists(st.text("abc", max_size=4), max_size=12), stops=st.lists(_SMALL, max_size=3))
def test_text_is_cut_at_the_first_stop_string_whatever_the_chunks(chunks: list[str], stops: list[str]) -> None:
    filtered = StopFilter(stops)
    shown = "".join([filtered.push(chunk) for chunk in chunks])
    hit = filtered.hit
    shown += filtered.finish()
    text = "".join(chunks)
    starts = [start for stop in stops if (start := text.find(stop)) >= 0]
    assert hit == bool(starts)
    if not starts:
        assert shown == text
    # A longer stop string may start before a shorter one that is complete sooner; text is never taken back.
    elif len(chunks) == 1 or len(stops) == 1:
        assert shown == text[: min(starts)]
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    filtered = StopFilter(["END"])
    assert [filtered.push(chunk) for chunk in ("an E", "N", "Tity E", "N")] == ["an ", "", "ENTity ", ""]
    assert not filtered.hit
    assert filtered.finish() == "EN"
