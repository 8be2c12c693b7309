from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.runners.tensorrt.placement import Place, packed, placed, runs

SLOTS, LONGEST = 5, 8


@given(steps=st.lists(st.tuples(st.integers(0, SLOTS - 1), st.sampled_from([0, 1, 2, 4, 8])), max_size=30))
def test_every_slot_finds_room_and_no_two_share_a_position(steps: list[tuple[int, int]]) -> None:
    places: dict[int, Place] = {}
    for slot, stride in steps:
        if stride == 0:
            places.pop(slot, None)
            continue
        if slot in places and places[slot].stride >= stride:
            continue
        places = placed(places, slot, stride, SLOTS * LONGEST)
        assert places[slot].stride == stride
        found = list(places.values())
        assert all(place.offset >= 0 and place.end <= SLOTS * LONGEST for place in found)
        assert not any(a.overlaps(b) for index, a in enumerate(found) for b in found[:index])


def test_a_slot_that_grows_leaves_the_others_where_they_are_if_it_can() -> None:
    places = {0: Place(0, 2), 1: Place(2, 2), 2: Place(4, 2)}
    assert placed(places, 0, 4, 16) == {0: Place(6, 4), 1: Place(2, 2), 2: Place(4, 2)}
    assert placed(places, 3, 2, 16)[3] == Place(6, 2)
    # The last one grows where it is.
    assert placed(places, 2, 4, 16)[2] == Place(4, 4)


def test_all_are_packed_where_no_gap_is_long_enough() -> None:
    places = {0: Place(0, 2), 1: Place(4, 2), 2: Place(8, 4)}
    assert placed(places, 1, 4, 12) == {0: Place(0, 2), 1: Place(2, 4), 2: Place(8, 4)}
    assert placed(places, 0, 4, 12) == {0: Place(0, 4), 1: Place(4, 2), 2: Place(8, 4)}
    scattered = {0: Place(1, 2), 1: Place(5, 2)}
    assert placed(scattered, 2, 4, 8) == {2: Place(0, 4), 0: Place(4, 2), 1: Place(6, 2)}


def test_packing_puts_the_named_slots_of_a_stride_side_by_side() -> None:
    places = {0: Place(0, 2), 1: Place(2, 2), 2: Place(4, 2), 3: Place(8, 4)}
    assert packed(places, [0, 2]) == {3: Place(0, 4), 0: Place(4, 2), 2: Place(6, 2), 1: Place(8, 2)}


def test_runs_are_neighbours_of_one_stride() -> None:
    places = {0: Place(0, 2), 1: Place(2, 2), 2: Place(4, 4), 3: Place(8, 4), 4: Place(13, 4)}
    assert runs(places, [4, 3, 2, 1, 0], 4) == [[0, 1], [2, 3], [4]]
    assert runs(places, [0, 3, 2], 4) == [[0], [2, 3]]
    assert runs(places, [0, 1, 2, 3], 1) == [[0], [1], [2], [3]]
    assert runs(places, [], 4) == []
