from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import RunnerError
from edgekit.runners.kv_cache import KvCache

RNG = np.random.default_rng(0)


def resident(cache: KvCache) -> int:
    """Bytes of a cache's mappings that are in memory."""
    starts = [array.ctypes.data for array in cache.arrays]
    found = 0
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="ascii")):
        low, high = (int(part, 16) for part in block.split(" ", 1)[0].split("-"))
        if any(low <= start < high for start in starts):
            found += int(re.findall(r"^Rss: +(\d+) kB", block, re.MULTILINE)[0]) << 10
    return found


def test_positions_that_were_read_are_written_back_elsewhere() -> None:
    cache = KvCache(6, slots=2, heads=3, positions=50, head_dim=16, dtype=np.float16)
    for array in cache.arrays:
        array[0] = RNG.standard_normal(array[0].shape)
    data = cache.read(0, 7, 19)
    assert len(data) == 12 * cache.bytes_per_token
    cache.write(1, 30, 12, memoryview(data))
    for array in cache.arrays:
        np.testing.assert_array_equal(array[1, :, 30:42], array[0, :, 7:19])
        assert not array[1, :, :30].any()
        assert not array[1, :, 42:].any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_writes_and_is_released_per_slot() -> None:
    cache = KvCache(8, slots=3, heads=4, positions=4000, head_dim=64, dtype=np.float32)
    assert resident(cache) == 0
    data = memoryview(RNG.bytes(500 * cache.bytes_per_token))
    for slot in range(3):
        cache.write(slot, 0, 500, data)
    used = resident(cache)
    # Each head's positions end within a page.
    assert 3 * len(data) <= used <= 3 * (len(data) + 8 * 4 * 2 * mmap.PAGESIZE)
    cache.release(1)
    assert resident(cache) == used - used // 3
    assert cache.read(0, 0, 500) == cache.read(2, 0, 500) == data
    cache.write(1, 0, 500, data)
    assert cache.read(1, 0, 500) == data
    assert resident(cache) == used


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_slots_than_there_is_memory_for_are_refused_with_how_many_fit() -> None:
    for slots in (10**9, 10**30):
        with pytest.raises(RunnerError, match=f"the KV cache of {slots} sequence slots of 4000 tokens") as caught:
            KvCache(8, slots=slots, heads=4, positions=4000, head_dim=64, dtype=np.float32)
        tokens, fitting = map(int, re.findall(r"memory for (\d+) tokens, or (\d+) slots", caught.value.hint or "")[0])
        assert tokens // 4000 == fitting
        # Between 16 MiB and a TiB of memory, at 8 KiB per token.
        assert 1 << 11 < tokens < 1 << 27


def test_slots_share_no_page() -> None:
    for positions in (1, 33, 257):
        array = KvCache(1, slots=2, heads=3, positions=positions, head_dim=48, dtype=np.float32).arrays[0]
        assert len(array[0, 0]) >= positions
        assert array[0].nbytes % mmap.PAGESIZE == 0
