from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.generation.prefix import disk
from edgekit.generation.prefix.block_file import read_block
from edgekit.generation.prefix.cache import PrefixCache
from edgekit.generation.prefix.disk import DiskStore
from edgekit.generation.prefix.pace import Pace
from tests.generation.prefix.rows import ROW_BYTES, RowRunner, rows

BLOCK = 4
BLOCK_BYTES = BLOCK * ROW_BYTES
PROMPT = list(range(100, 121))  # five blocks and a token
A, B = "tenant a", "tenant b"


def memory_cache(blocks: int = 100, *, fingerprint: str = "model", pace: Pace | None = None) -> PrefixCache:
    return PrefixCache(
        None,
        memory_bytes=blocks * BLOCK_BYTES,
        block_tokens=BLOCK,
        kv_bytes_per_token=ROW_BYTES,
        fingerprint=fingerprint,
        pace=pace,
    )


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[PrefixCache]:
    """A cache that holds PROMPT on disk and nothing in memory."""
    cache = disk_cache(tmp_path)
    save(cache, PROMPT)
    cache.close()
    cache = disk_cache(tmp_path)
    yield cache
    cache.close()


def disk_cache(folder: Path, *, blocks: int = 100, memory_blocks: int = 0, pace: Pace | None = None) -> PrefixCache:
    # A small block takes a page.
    return PrefixCache(
        DiskStore(folder, max_bytes=blocks * 4096, fingerprint="model"),
        memory_bytes=memory_blocks * BLOCK_BYTES,
        block_tokens=BLOCK,
        kv_bytes_per_token=ROW_BYTES,
        fingerprint="model",
        pace=pace,
    )


def save(cache: PrefixCache, tokens: list[int], tenant: str = A, upto: int = 1000) -> int:
    """Return how many blocks were read from the runner."""
    runner = RowRunner().fill(tokens)
    cache.save(runner, 0, tokens, tenant, upto=upto)
    if cache._store:
        assert cache._store.flush(10)
    return runner.reads


def restored(cache: PrefixCache, tokens: list[int], tenant: str = A, *, have: int = 0) -> int:
    """Restore behind `have` tokens, check every byte, return the new length."""
    runner = RowRunner().fill(tokens[:have])
    length = cache.restore(runner, 0, tokens, tenant)
    assert runner.kv == rows(tokens[:length])
    return length


def test_a_prompt_is_put_back_up_to_its_last_whole_block_with_a_token_left_to_compute() -> None:
    cache = memory_cache()
    assert cache.lookup(PROMPT, A) == restored(cache, PROMPT) == 0
    save(cache, PROMPT)
    for tokens, expected in [
        (PROMPT, 20),
        (PROMPT[:20], 16),
        (PROMPT[:9], 8),
        (PROMPT[:8], 4),
        (PROMPT[:4], 0),
        ([], 0),
        ([*PROMPT, 1, 2, 3, 4, 5], 20),
        ([*PROMPT[:10], 1, 2, 3], 8),
        ([1, *PROMPT], 0),
    ]:
        assert cache.lookup(tokens, A) == expected
        assert restored(cache, tokens) == expected


def test_what_the_slot_holds_already_is_kept_and_added_to() -> None:
    cache = memory_cache()
    save(cache, PROMPT)
    assert restored(cache, PROMPT, have=8) == 20
    assert restored(cache, PROMPT, have=20) == 20
    assert restored(cache, PROMPT, have=7) == 7
    assert restored(cache, PROMPT, have=21) == 21


def test_only_as_much_is_saved_as_was_asked_for_and_nothing_twice() -> None:
    cache = memory_cache()
    assert save(cache, PROMPT, upto=11) == 2
    assert restored(cache, PROMPT) == 8
    assert save(cache, PROMPT) == 3
    assert save(cache, PROMPT) == 0
    assert restored(cache, PROMPT) == 20


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_tenants_and_models_share_nothing(tmp_path: Path, where: str) -> None:
    cache = memory_cache() if where == "memory" else disk_cache(tmp_path)
    save(cache, PROMPT, A)
    assert restored(cache, PROMPT, B) == 0
    assert cache.lookup(PROMPT, B) == 0
    save(cache, PROMPT[:9], B)
    assert (restored(cache, PROMPT, A), restored(cache, PROMPT, B)) == (20, 8)
    other = memory_cache(fingerprint="another model")
    other._memory = cache._memory
    assert other.lookup(PROMPT, A) == 0
    cache.close()


def test_memory_gives_up_the_ends_of_what_was_used_least_recently() -> None:
    cache = memory_cache(6)
    one, two, three = ([number] * 13 for number in (1, 2, 3))
    save(cache, one)
    save(cache, two)
    assert restored(cache, one) == 12
    save(cache, three[:9])
    assert [cache.lookup(tokens, A) for tokens in (one, two, three)] == [12, 4, 8]
    stats = cache.stats()
    assert (stats.memory_bytes, stats.memory_evictions) == (6 * BLOCK_BYTES, 2)


def test_a_prompt_larger_than_memory_keeps_its_beginning() -> None:
    cache = memory_cache(3)
    save(cache, [1] * 5)
    save(cache, PROMPT)
    assert cache.lookup(PROMPT, A) == 12
    assert cache.stats().memory_bytes == 3 * BLOCK_BYTES


def test_a_prompt_larger_than_the_disk_keeps_its_beginning(tmp_path: Path) -> None:
    cache = disk_cache(tmp_path, blocks=3)
    save(cache, [1] * 5)
    save(cache, PROMPT)
    assert restored(cache, PROMPT) == 12
    cache.close()


def test_without_memory_and_disk_nothing_is_kept() -> None:
    cache = memory_cache(0)
    assert save(cache, PROMPT) == 0
    assert restored(cache, PROMPT) == 0


def test_after_a_restart_prompts_come_from_disk_once_and_then_from_memory(tmp_path: Path) -> None:
    cache = disk_cache(tmp_path)
    save(cache, PROMPT)
    cache.close()
    cache = disk_cache(tmp_path, memory_blocks=3)
    assert cache.lookup(PROMPT, A) == 20
    assert restored(cache, PROMPT) == 20
    assert restored(cache, PROMPT) == 20
    stats = cache.stats()
    assert (stats.from_disk_bytes, stats.from_memory_bytes) == (7 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    assert (stats.hits, stats.misses) == (40, 0)
    assert stats.memory_bytes == 3 * BLOCK_BYTES
    cache.close()


def test_a_block_lost_on_disk_is_mended_by_the_next_save(tmp_path: Path, on_disk: PrefixCache) -> None:
    victim = sorted((tmp_path / "prefix").glob("*.kv"), key=lambda path: path.stat().st_mtime_ns)[2]
    victim.write_bytes(victim.read_bytes()[:-1])
    # By age, the end of the chain comes first: the third is the middle one.
    assert restored(on_disk, PROMPT) == 8
    assert on_disk.lookup(PROMPT, A) == 8
    assert on_disk.stats().misses == 12
    assert save(on_disk, PROMPT) == 1
    assert restored(on_disk, PROMPT) == 20


def test_what_only_memory_holds_goes_to_disk_at_the_next_save_without_asking_the_runner(tmp_path: Path) -> None:
    cache = disk_cache(tmp_path, memory_blocks=10)
    save(cache, PROMPT)
    for path in (tmp_path / "prefix").glob("*.kv"):
        path.unlink()
    assert cache._store
    cache._store._index = type(cache._store._index)()
    assert save(cache, PROMPT) == 0
    assert len(list((tmp_path / "prefix").glob("*.kv"))) == 5
    cache.close()


def test_where_computing_is_faster_nothing_is_put_back_from_disk_until_it_is_tried_again(tmp_path: Path) -> None:
    now = 0.0
    pace = Pace(lambda: now)
    cache = disk_cache(tmp_path, memory_blocks=2, pace=pace)
    save(cache, PROMPT)
    cache.computed(1000, 1.0)
    pace.fetched("disk", 10, 100.0)
    assert cache.lookup(PROMPT, A) == restored(cache, PROMPT) == 8
    assert cache.stats().slower == 1
    now = 61.0
    assert cache.lookup(PROMPT, A) == restored(cache, PROMPT) == 20
    cache.close()


def test_nothing_is_written_to_a_disk_that_is_too_slow_to_be_read(tmp_path: Path) -> None:
    pace = Pace()
    cache = disk_cache(tmp_path, pace=pace)
    pace.computed(1000, 1.0)
    pace.fetched("disk", 10, 100.0)
    save(cache, PROMPT)
    assert not list((tmp_path / "prefix").glob("*.kv"))
    cache.close()


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = read_block

    def slow(path: Path, *, fingerprint: bytes, key: bytes) -> bytes:
        time.sleep(seconds)
        return real(path, fingerprint=fingerprint, key=key)

    monkeypatch.setattr(disk, "read_block", slow)


def test_a_disk_that_turns_out_slower_than_the_model_is_left_after_two_blocks(
    on_disk: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 0.5)
    on_disk.computed(BLOCK * 10, 4.0)  # 0.4 s a block
    on_disk._pace.fetched("disk", 1000, 0.001)
    assert restored(on_disk, PROMPT) == 8
    assert on_disk.stats().slower == 1
    for _ in range(3):
        on_disk._pace.fetched("disk", BLOCK, 0.5)
    assert on_disk.lookup(PROMPT, A) == 0


def test_a_disk_that_does_not_answer_holds_a_request_up_for_a_part_of_what_it_could_save(
    on_disk: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = read_block

    def hang(path: Path, *, fingerprint: bytes, key: bytes) -> bytes:
        assert go.wait(60)
        return real(path, fingerprint=fingerprint, key=key)

    monkeypatch.setattr(disk, "read_block", hang)
    on_disk.computed(BLOCK, 0.2)
    started = time.monotonic()
    assert restored(on_disk, PROMPT) == 0
    assert 0.4 <= time.monotonic() - started < 5
    # Not asked again, and not waited for again, before it has answered.
    started = time.monotonic()
    assert restored(on_disk, PROMPT) == 0
    assert time.monotonic() - started < 0.4
    assert on_disk._store
    go.set()
    while on_disk._store._reading:
        time.sleep(0.001)
    monkeypatch.setattr(on_disk._pace, "_sources", {})
    assert restored(on_disk, PROMPT) == 20


def test_a_block_that_the_runner_refuses_ends_the_restoring_and_leaves_what_was_good() -> None:
    cache = memory_cache()
    save(cache, PROMPT)

    class Refuses(RowRunner):
        def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
            super().write_kv(slot, start, data)
            if start >= 8:
                raise RunnerError("out of memory")
            return self.length(slot)

    runner = Refuses()
    assert cache.restore(runner, 0, PROMPT, A) == 8
    assert runner.kv == rows(PROMPT[:8])


def test_a_cache_that_was_closed_holds_nothing(on_disk: PrefixCache) -> None:
    save(on_disk, PROMPT)
    on_disk.close()
    on_disk.close()
    assert restored(on_disk, PROMPT) == 0
    save(on_disk, [1] * 9)


def test_odd_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        PrefixCache(None, memory_bytes=1, block_tokens=3, kv_bytes_per_token=1, fingerprint="")
