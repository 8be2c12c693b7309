from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.generation.prefix import cache as cache_module
from edgekit.generation.prefix import disk
from edgekit.generation.prefix.block_file import read_block
from edgekit.generation.prefix.cache import PrefixCache
from edgekit.generation.prefix.disk import DiskStore
from edgekit.generation.prefix.rates import Rates
from edgekit.generation.prefix.readahead import ReadAhead
from tests.generation.prefix.rows import ROW_BYTES, RowRunner, rows

BLOCK = 4
BLOCK_BYTES = BLOCK * ROW_BYTES
PROMPT = list(range(100, 121))  # five blocks and a token
A, B = "tenant a", "tenant b"


def memory_cache(blocks: int = 100, *, fingerprint: str = "model", rates: Rates | None = None) -> PrefixCache:
    return PrefixCache(
        None,
        memory_bytes=blocks * BLOCK_BYTES,
        block_tokens=BLOCK,
        kv_bytes_per_token=ROW_BYTES,
        fingerprint=fingerprint,
        rates=rates,
    )


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[PrefixCache]:
    """A cache with PROMPT on disk and nothing in memory."""
    cache = disk_cache(tmp_path)
    save(cache, PROMPT)
    cache.close()
    cache = disk_cache(tmp_path)
    yield cache
    cache.close()


def disk_cache(folder: Path, *, blocks: int = 100, memory_blocks: int = 0, rates: Rates | None = None) -> PrefixCache:
    # A small block occupies a page.
    return PrefixCache(
        DiskStore(folder, max_bytes=blocks * 4096, fingerprint="model"),
        memory_bytes=memory_blocks * BLOCK_BYTES,
        block_tokens=BLOCK,
        kv_bytes_per_token=ROW_BYTES,
        fingerprint="model",
        rates=rates,
    )


def save(cache: PrefixCache, tokens: list[int], tenant: str = A, upto: int = 1000) -> int:
    """Save, and return how many blocks were read from the runner."""
    runner = RowRunner().fill(tokens)
    cache.save(runner, 0, tokens, tenant, upto=upto)
    if cache._store:
        assert cache._store.flush(10)
    return runner.reads


def restored(cache: PrefixCache, tokens: list[int], tenant: str = A, *, have: int = 0) -> int:
    """Restore after `have` tokens, check every byte, and return the new length."""
    runner = RowRunner().fill(tokens[:have])
    length = cache.restore(runner, 0, tokens, tenant)
    assert runner.kv == rows(tokens[:length])
    return length


def test_a_prompt_is_restored_up_to_its_last_complete_block_with_a_token_left_to_compute() -> None:
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


def test_blocks_are_appended_to_what_the_slot_already_holds() -> None:
    cache = memory_cache()
    save(cache, PROMPT)
    assert restored(cache, PROMPT, have=8) == 20
    assert restored(cache, PROMPT, have=20) == 20
    assert restored(cache, PROMPT, have=7) == 7
    assert restored(cache, PROMPT, have=21) == 21


def test_only_complete_blocks_that_were_missing_in_the_slot_count_as_hits_or_misses() -> None:
    cache = memory_cache()
    save(cache, PROMPT, upto=12)
    assert restored(cache, PROMPT, have=8) == 12
    assert (cache.stats().hits, cache.stats().misses) == (4, 8)
    assert restored(cache, PROMPT, have=20) == 20
    assert restored(cache, PROMPT, have=7) == 7
    assert (cache.stats().hits, cache.stats().misses) == (4, 8)
    assert cache.stats().from_memory_bytes == BLOCK_BYTES


def test_only_the_requested_tokens_are_saved_and_nothing_twice() -> None:
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


def test_memory_evicts_the_ends_of_the_least_recently_used_prompts() -> None:
    cache = memory_cache(6)
    one, two, three = ([number] * 13 for number in (1, 2, 3))
    save(cache, one)
    save(cache, two)
    assert restored(cache, one) == 12
    save(cache, three[:9])
    assert [cache.lookup(tokens, A) for tokens in (one, two, three)] == [12, 4, 8]
    stats = cache.stats()
    assert (stats.memory_bytes, stats.memory_evictions) == (6 * BLOCK_BYTES, 2)


def test_the_start_of_a_prompt_larger_than_memory_is_kept() -> None:
    cache = memory_cache(3)
    save(cache, [1] * 5)
    save(cache, PROMPT)
    assert cache.lookup(PROMPT, A) == 12
    assert cache.stats().memory_bytes == 3 * BLOCK_BYTES


def test_the_start_of_a_prompt_larger_than_the_disk_is_kept(tmp_path: Path) -> None:
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


def test_a_block_lost_on_disk_is_written_again_by_the_next_save(tmp_path: Path, on_disk: PrefixCache) -> None:
    victim = sorted((tmp_path / "prefix").glob("*.kv"), key=lambda path: path.stat().st_mtime_ns)[2]
    victim.write_bytes(victim.read_bytes()[:-1])
    # By age, the end of the chain comes first: the third one is in the middle.
    assert restored(on_disk, PROMPT) == 8
    assert on_disk.lookup(PROMPT, A) == 8
    assert on_disk.stats().misses == 12
    assert save(on_disk, PROMPT) == 1
    assert restored(on_disk, PROMPT) == 20


def test_a_block_that_is_only_in_memory_goes_to_disk_at_the_next_save_without_reading_the_slot(tmp_path: Path) -> None:
    cache = disk_cache(tmp_path, memory_blocks=10)
    save(cache, PROMPT)
    for path in (tmp_path / "prefix").glob("*.kv"):
        path.unlink()
    assert cache._store
    cache._store._index = type(cache._store._index)()
    assert save(cache, PROMPT) == 0
    assert len(list((tmp_path / "prefix").glob("*.kv"))) == 5
    cache.close()


def test_where_computing_is_faster_nothing_is_restored_from_disk_until_it_is_tried_again(tmp_path: Path) -> None:
    now = 0.0
    rates = Rates(lambda: now)
    cache = disk_cache(tmp_path, memory_blocks=2, rates=rates)
    save(cache, PROMPT)
    cache.computed(1000, 1.0)
    rates.fetched("disk", 10, 100.0)
    assert cache.lookup(PROMPT, A) == restored(cache, PROMPT) == 8
    assert cache.stats().slower == 1
    now = 61.0
    assert cache.lookup(PROMPT, A) == restored(cache, PROMPT) == 20
    cache.close()


def test_nothing_is_written_to_a_disk_that_is_too_slow_to_be_read(tmp_path: Path) -> None:
    rates = Rates()
    cache = disk_cache(tmp_path, rates=rates)
    rates.computed(1000, 1.0)
    rates.fetched("disk", 10, 100.0)
    save(cache, PROMPT)
    assert not list((tmp_path / "prefix").glob("*.kv"))
    cache.close()


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = read_block

    def slow(path: Path, *, fingerprint: bytes, key: bytes) -> bytes:
        time.sleep(seconds)
        return real(path, fingerprint=fingerprint, key=key)

    monkeypatch.setattr(disk, "read_block", slow)


def test_a_disk_that_turns_out_slower_than_the_model_is_abandoned_after_two_blocks(
    on_disk: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 0.5)
    on_disk.computed(BLOCK * 10, 4.0)  # 0.4 s a block
    on_disk._rates.fetched("disk", 1000, 0.001)
    assert restored(on_disk, PROMPT) == 8
    assert on_disk.stats().slower == 1
    for _ in range(3):
        on_disk._rates.fetched("disk", BLOCK, 0.5)
    assert on_disk.lookup(PROMPT, A) == 0


class Clock:
    """The time, which passes only while a block is read."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


def timed_cache(
    folder: Path, prompt: list[int], monkeypatch: pytest.MonkeyPatch, read_s: float
) -> tuple[PrefixCache, list[float]]:
    """A cache with a prompt on a disk whose blocks take so long to read, and how long it waits for each of them."""
    first = disk_cache(folder)
    save(first, prompt)
    first.close()
    timeouts: list[float] = []

    class Timed(ReadAhead):
        def next(self, timeout_s: float) -> bytes | None:
            timeouts.append(timeout_s)
            Clock.now += read_s
            return super().next(60)

    Clock.now = 0.0
    monkeypatch.setattr(cache_module, "time", Clock)
    monkeypatch.setattr(cache_module, "ReadAhead", Timed)
    return disk_cache(folder, rates=Rates(Clock.monotonic)), timeouts


@pytest.mark.parametrize(("read_s", "length"), [(0.35, 20), (0.39, 20), (0.41, 8), (3.0, 8)])
def test_restoring_ends_after_two_blocks_if_they_took_longer_than_computing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_s: float, length: int
) -> None:
    cache, _ = timed_cache(tmp_path, PROMPT, monkeypatch, read_s)
    cache.computed(BLOCK * 10, 4.0)  # 0.4 s a block
    assert restored(cache, PROMPT) == length
    stats = cache.stats()
    assert (stats.slower, stats.hits, stats.misses) == (int(length == 8), length, 20 - length)
    assert stats.from_disk_bytes == length * ROW_BYTES
    cache.close()


def test_a_block_is_waited_for_a_quarter_of_the_time_that_the_rest_saves_but_as_long_as_two_take_to_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(100, 100 + 12 * BLOCK + 1))
    cache, timeouts = timed_cache(tmp_path, prompt, monkeypatch, 0.0)
    assert restored(cache, prompt) == 12 * BLOCK
    assert timeouts == [2.0] * 12, "before the speed of computing is known"
    timeouts.clear()
    cache.computed(BLOCK * 10, 4.0)
    assert restored(cache, prompt) == 12 * BLOCK
    assert timeouts == pytest.approx([1.2, 1.1, 1.0, 0.9, *[0.8] * 8])
    cache.close()


def test_a_hanging_disk_delays_a_request_by_a_fraction_of_what_it_could_save(
    on_disk: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = read_block

    def hang(path: Path, *, fingerprint: bytes, key: bytes) -> bytes:
        assert go.wait(60)
        return real(path, fingerprint=fingerprint, key=key)

    others = {*threading.enumerate()}
    monkeypatch.setattr(disk, "read_block", hang)
    on_disk.computed(BLOCK, 0.2)
    started = time.monotonic()
    assert restored(on_disk, PROMPT) == 0
    assert 0.4 <= time.monotonic() - started < 30
    (reader,) = (thread for thread in {*threading.enumerate()} - others if thread.name == "prefix-reader")
    assert reader.daemon, "it does not keep the process from ending"
    # It is not read again, and not waited for again, before it has answered, however much that could save.
    monkeypatch.setattr(on_disk._rates, "_prefill", 100.0)
    started = time.monotonic()
    assert restored(on_disk, PROMPT) == 0
    assert time.monotonic() - started < 30
    assert on_disk._store
    go.set()
    while on_disk._store._reading:
        time.sleep(0.001)
    monkeypatch.setattr(on_disk._rates, "_sources", {})
    assert restored(on_disk, PROMPT) == 20


def test_a_block_that_the_runner_rejects_ends_the_restore_and_leaves_the_blocks_before_it() -> None:
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


def test_a_closed_cache_restores_nothing(on_disk: PrefixCache) -> None:
    save(on_disk, PROMPT)
    on_disk.close()
    on_disk.close()
    assert restored(on_disk, PROMPT) == 0
    save(on_disk, [1] * 9)


@pytest.mark.parametrize(("block_tokens", "token_bytes"), [(3, 1), (1, 1), (0, 1), (-2, 1), (2, 0)])
def test_blocks_of_an_odd_size_or_of_none_are_rejected(block_tokens: int, token_bytes: int) -> None:
    with pytest.raises(ValueError, match="even"):
        PrefixCache(None, memory_bytes=1, block_tokens=block_tokens, kv_bytes_per_token=token_bytes, fingerprint="")
    smallest = PrefixCache(None, memory_bytes=1, block_tokens=2, kv_bytes_per_token=1, fingerprint="")
    assert smallest.block_tokens == 2
