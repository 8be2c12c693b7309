from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.stops import StopFilter

_SMALL = st.text("abc", min_size=1, max_size=4)


@given(pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=st.lists(_SMALL, max_size=3))
def test_text_is_cut_at_the_first_stop_text_however_it_comes(pieces: list[str], stops: list[str]) -> None:
    filtered = StopFilter(stops)
    shown = "".join([filtered.push(piece) for piece in pieces])
    hit = filtered.hit
    shown += filtered.finish()
    whole = "".join(pieces)
    starts = [start for stop in stops if (start := whole.find(stop)) >= 0]
    assert hit == bool(starts)
    if not starts:
        assert shown == whole
    # A longer stop text may begin before a shorter one that is complete sooner; what was shown is never taken back.
    elif len(pieces) == 1 or len(stops) == 1:
        assert shown == whole[: min(starts)]
    else:
        assert whole.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_only_what_may_become_a_stop_text_is_kept_back() -> None:
    filtered = StopFilter(["END"])
    assert [filtered.push(piece) for piece in ("an E", "N", "Tity E", "N")] == ["an ", "", "ENTity ", ""]
    assert not filtered.hit
    assert filtered.finish() == "EN"
