from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RunnerError
from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.stream import Stream
from edgekit.runners.tensorrt.kv_arena import KvArena
from tests.runners.cuda.driver_double import DriverDouble

TENSORS, SLOTS, HEADS, ROW, CAPACITY = 3, 3, 2, 32, 2048


def arena(double: DriverDouble | None = None, **options: Any) -> KvArena:
    device = Device(double or DriverDouble())
    given: dict[str, Any] = {
        "tensors": TENSORS, "slots": SLOTS, "heads": HEADS, "row_bytes": ROW, "capacity": CAPACITY, "block": 8,
    }  # fmt: skip
    return KvArena(device, Stream(device), **(given | options))


def rows(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(TENSORS * HEADS * ROW * count)


def span(data: bytes, start: int, stop: int) -> bytes:
    array = np.frombuffer(data, np.uint8).reshape(TENSORS, HEADS, -1, ROW)
    return array[:, :, start:stop].tobytes()


ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SLOTS - 1), st.integers(1, 700)),
    st.tuples(st.just("truncate"), st.integers(0, SLOTS - 1), st.integers(0, 700)),
    st.tuples(st.just("release"), st.integers(0, SLOTS - 1), st.just(0)),
    st.tuples(st.just("gather"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
)


@given(actions=st.lists(ACTIONS, max_size=12), positions=st.sampled_from([None, 1024, 1800, 3072]))
def test_whatever_moves_every_slot_keeps_its_tokens(actions: list[tuple[str, int, int]], positions: int | None) -> None:
    kv = arena(positions=positions)
    held = dict.fromkeys(range(SLOTS), b"")

    def joined(first: bytes, second: bytes) -> bytes:
        parts = [np.frombuffer(part, np.uint8).reshape(TENSORS, HEADS, -1, ROW) for part in (first, second)]
        return np.concatenate(parts, 2).tobytes()

    for number, (action, slot, count) in enumerate(actions):
        if action == "write" and kv.lengths[slot] + count <= kv.pool.capacity:
            data = rows(count, number)
            after = {each: kv.lengths[each] + (count if each == slot else 0) for each in held}
            if sum(map(kv.pool.taken, after.values())) > kv.pool.positions:
                with pytest.raises(RunnerError, match="the KV cache is full"):
                    kv.write(slot, memoryview(data))
            else:
                kv.write(slot, memoryview(data))
                held[slot] = joined(held[slot], data)
        elif action == "truncate" and 0 < count <= kv.lengths[slot]:
            held[slot] = span(held[slot], 0, count)
            kv.lengths[slot] = count
        elif action == "release":
            kv.release(slot)
            held[slot] = b""
        elif action == "gather":
            kv.gather([slot, count])
        for each, data in held.items():
            assert kv.read(each, 0, kv.lengths[each]) == data


def test_a_slot_has_the_length_of_its_bucket() -> None:
    kv = arena()
    for tokens, stride in ((1, 256), (255, 256), (1, 512), (300, 1024), (1000, 2048)):
        kv.write(0, memoryview(rows(tokens)))
        assert kv.place(0).stride == stride
    kv.release(0)
    kv.reserve({0: 10})
    assert kv.place(0).stride == 256


def test_the_pool_may_be_smaller_than_all_slots_and_limits_each_of_them() -> None:
    kv = arena(positions=1601)
    assert (kv.pool.positions, kv.pool.capacity) == (1600, 1600)
    assert kv.size == (TENSORS + 1) * 1600 * HEADS * ROW
    kv.reserve({0: 600, 1: 300})
    kv.lengths[:] = [600, 300, 0]
    with pytest.raises(RunnerError, match="the KV cache is full: it has 1600 positions"):
        kv.reserve({2: 1})
    assert kv.place(0).stride == 1024
    # What was reserved for tokens that are no more is given up.
    kv.lengths[0] = 200
    kv.reserve({2: 1})
    assert [kv.place(slot).stride for slot in range(SLOTS)] == [256, 512, 256]


def test_places_of_slots_without_tokens_are_given_up_when_another_needs_them() -> None:
    kv = arena(positions=1024)
    kv.reserve({0: 512, 1: 512})
    kv.reserve({2: 1024})
    assert kv.place(2).stride == 1024


def test_engines_that_take_a_whole_cache_have_places_of_that_length() -> None:
    kv = arena(block=None)
    kv.reserve({1: 3})
    assert kv.place(1).stride == CAPACITY


def test_a_span_is_read_from_the_middle() -> None:
    kv = arena()
    data = rows(300)
    kv.write(2, memoryview(data))
    assert kv.read(2, 250, 290) == span(data, 250, 290)
    assert kv.read(2, 7, 7) == b""


def test_unused_positions_hold_zeros_so_that_no_nan_spreads() -> None:
    double = DriverDouble()
    kv = arena(double)
    kv.reserve({0: 1})
    kv._stream.synchronize()
    size = kv.bytes_per_token // TENSORS * kv.place(0).stride
    assert not double.memory(kv.base(0) + kv.offset_bytes(kv.place(0)), size).any()


def test_the_capacity_is_rounded_down_to_aligned_blocks_where_the_engines_allow_it() -> None:
    assert arena(capacity=1001).pool.capacity == 1000
    assert arena(capacity=1001, heads=1, row_bytes=16).pool.capacity == 992
    with pytest.raises(RunnerError, match="cannot be aligned") as caught:
        arena(capacity=1001, block=None)
    assert caught.value.hint == "use a multiple of 4"


def test_too_little_memory_is_said_at_once() -> None:
    with pytest.raises(RunnerError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        arena(DriverDouble(memory=1 << 20))
