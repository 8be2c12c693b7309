"""Slots are laid out for their length, and keep their rows when they are laid anew."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.runners.bucketed_cache import BucketedKvCache
from edgekit.runners.buckets import FIRST_BUCKET, bucket_of

HEADS, DIM, CAPACITY = 3, 8, 32_768


@pytest.fixture
def cache() -> BucketedKvCache:
    return BucketedKvCache(2, 2, heads=HEADS, positions=CAPACITY, head_dim=DIM, dtype=np.float16)


def rows(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return np.random.default_rng(seed).standard_normal((2, HEADS, count, DIM)).astype(np.float16)


@pytest.mark.parametrize("length", [1, 129, 256, 257, 300, 511, 513, 4097, 16_385, 30_000])
def test_attention_reads_at_most_twice_the_tokens_held(length: int) -> None:
    assert length <= bucket_of(length, CAPACITY) <= max(2 * length, FIRST_BUCKET)


def test_a_bucket_is_never_longer_than_the_capacity() -> None:
    assert bucket_of(4000, 4096) == bucket_of(4096, 4096) == 4096
    assert bucket_of(10, 64) == 64


def test_rows_stay_when_a_slot_outgrows_its_bucket_again_and_again(cache: BucketedKvCache) -> None:
    written = rows(5000)
    for start in range(0, 5000, 100):
        cache.write(0, start, 100, memoryview(written[:, :, start : start + 100].tobytes()))
        assert cache.stride(0) == bucket_of(start + 100, cache.capacity)
    assert cache.read(0, 0, 5000) == written.tobytes()
    assert cache.read(0, 250, 260) == written[:, :, 250:260].tobytes()
    assert not any(array[1].any() for array in cache.arrays), "the other slot is untouched"


def test_a_view_is_what_a_graph_of_fixed_capacity_takes(cache: BucketedKvCache) -> None:
    written = rows(300)
    cache.write(1, 0, 300, memoryview(written.tobytes()))
    for view, part in zip(cache.views(1), written, strict=True):
        assert view.shape == (HEADS, 512, DIM)
        assert view.flags.c_contiguous
        assert view.base is not None
        np.testing.assert_array_equal(view[:, :300], part)


def test_room_for_new_rows_is_made_before_they_come(cache: BucketedKvCache) -> None:
    cache.write(0, 0, 250, memoryview(rows(250).tobytes()))
    assert cache.stride(0) == 256
    cache.reserve(0, 250, 257)
    assert cache.stride(0) == 512
    assert cache.read(0, 0, 250) == rows(250).tobytes()


def test_a_released_slot_begins_with_the_smallest_bucket(cache: BucketedKvCache) -> None:
    cache.write(0, 0, 1000, memoryview(rows(1000).tobytes()))
    cache.release(0)
    assert cache.stride(0) == FIRST_BUCKET
    cache.write(0, 0, 10, memoryview(rows(10, 1).tobytes()))
    assert cache.read(0, 0, 10) == rows(10, 1).tobytes()
