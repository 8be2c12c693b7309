from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.prefix.lru import Lru

KEYS = st.sampled_from([bytes([number]) for number in range(6)])
Step = tuple[str, bytes | list[bytes], int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(1, 9)),
        st.tuples(st.just("remove"), KEYS, st.just(0)),
        st.tuples(st.just("touch"), st.lists(KEYS, unique=True), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_order_and_bytes_match_a_plain_list(
    steps: list[tuple[str, bytes | list[bytes], int]],
) -> None:
    lru: Lru[int] = Lru()
    model: list[tuple[bytes, int]] = []
    for step, what, size in steps:
        gone = [what] if isinstance(what, bytes) else what
        if step == "put":
            assert isinstance(what, bytes)
            lru.put(what, size, size)
            model = [entry for entry in model if entry[0] not in gone] + [(what, size)]
        elif step == "remove":
            assert isinstance(what, bytes)
            lru.remove(what)
            model = [entry for entry in model if entry[0] not in gone]
        else:
            assert isinstance(what, list)
            lru.touch(what)
            sizes = dict(model)
            model = [entry for entry in model if entry[0] not in gone]
            model += [(key, sizes[key]) for key in reversed(what) if key in sizes]
        assert lru.keys() == [key for key, _ in model]
        assert lru.used == sum(size for _, size in model)
        assert lru.oldest() == (model[0][0] if model else None)
        assert [lru.get(key) for key, _ in model] == [size for _, size in model]


def test_a_chain_is_evicted_from_its_end() -> None:
    lru: Lru[None] = Lru()
    for key in (b"0", b"1", b"2", b"other"):
        lru.put(key, None, 1)
    lru.touch([b"0", b"1", b"2"])
    assert lru.keys() == [b"other", b"2", b"1", b"0"]
