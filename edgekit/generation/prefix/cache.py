"""The prefix cache: KV cache of prompt prefixes, in memory and on disk, restored where recomputing would be slower.

A prompt is split into blocks of a fixed number of tokens. A block's key (`keys.py`) identifies all tokens up to its
end, so prompts with a common prefix share blocks, while tenants and models never do. A block's bytes are opaque: only
the runner that wrote them can read them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from edgekit.errors import RunnerError
from edgekit.generation.prefix.disk import DiskStats, DiskStore
from edgekit.generation.prefix.keys import block_keys, root_key
from edgekit.generation.prefix.lru import Lru
from edgekit.generation.prefix.rates import Rates, Source
from edgekit.generation.prefix.readahead import ReadAhead
from edgekit.runners.base import Runner

__all__ = ["BLOCK_TOKENS", "PrefixCache", "PrefixStats"]

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 32
"""Default tokens per block.

On average half a block is lost at the end of a prefix, and computing those tokens costs more than smaller blocks do:
with blocks of 32 to 256 tokens, restoring 1,472 tokens took the same time.
"""

# Timeout for a block from disk before the prefill speed is known.
_DEFAULT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counters since the start, and current sizes.

    Attributes:
        hits: Tokens restored.
        misses: Tokens of complete blocks that were looked up and not restored.
        from_memory_bytes: KV cache restored from memory.
        from_disk_bytes: KV cache restored from disk.
        memory_bytes: KV cache in memory now.
        memory_evictions: Blocks evicted from memory.
        slower: How often cached blocks were recomputed because that was faster.
        disk: The disk store's statistics; None without one.
    """

    hits: int
    misses: int
    from_memory_bytes: int
    from_disk_bytes: int
    memory_bytes: int
    memory_evictions: int
    slower: int
    disk: DiskStats | None


@dataclass(slots=True)
class _Counts:
    hits: int = 0
    misses: int = 0
    slower: int = 0
    evictions: int = 0
    restored: dict[Source, int] = field(default_factory=lambda: {"memory": 0, "disk": 0})


class PrefixCache:
    """Blocks in memory and, with a store, on disk.

    `lookup` and `stats` may be called from any thread; the rest from the runner's.

    Args:
        store: The disk store, which the cache closes; None keeps blocks in memory only.
        memory_bytes: Maximum KV cache in memory; 0 keeps none there.
        block_tokens: Tokens per block; even, because a runner's exact mode computes rows in pairs.
        kv_bytes_per_token: The runner's.
        fingerprint: The model's (`keys.model_fingerprint`).
        rates: Replaceable in tests.
    """

    def __init__(
        self,
        store: DiskStore | None,
        *,
        memory_bytes: int,
        block_tokens: int = BLOCK_TOKENS,
        kv_bytes_per_token: int,
        fingerprint: str,
        rates: Rates | None = None,
    ) -> None:
        if block_tokens < 2 or block_tokens % 2 or kv_bytes_per_token < 1:
            raise ValueError("`block_tokens` must be even, and `kv_bytes_per_token` positive")
        self._store = store
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * kv_bytes_per_token
        self._fingerprint = fingerprint
        self._rates = rates or Rates()
        self._memory: Lru[bytes] = Lru()
        self._memory_bytes = memory_bytes
        # Maximum blocks of one chain: more would evict the chain's own start.
        self._memory_fits = memory_bytes // self._block_bytes
        self._disk_fits = store.capacity(self._block_bytes) if store else 0
        self._counts = _Counts()
        self._lock = threading.Lock()

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return self._block_tokens

    def lookup(self, tokens: Sequence[int], tenant: str) -> int:
        """Return how many of a prompt's first tokens `restore` would restore.

        At least one token of the prompt is left to compute, for its logits.

        Args:
            tokens: The full prompt.
            tenant: The prompt's tenant.
        """
        keys = self._keys(tokens[:-1], tenant)
        plan, _ = self._plan(keys, 0)
        return len(plan) * self._block_tokens

    def restore(self, runner: Runner, slot: int, tokens: Sequence[int], tenant: str) -> int:
        """Append a prompt's cached blocks to a slot.

        Args:
            runner: The runner of the model with this fingerprint.
            slot: Empty, or filled with the first complete blocks of `tokens`.
            tokens: The full prompt; at least its last token is left to compute.
            tenant: The prompt's tenant.

        Returns:
            The slot's new length: unchanged if nothing is cached, or computing is faster.
        """
        length = runner.length(slot)
        first, rest = divmod(length, self._block_tokens)
        keys = self._keys(tokens[:-1], tenant)
        if rest or first >= len(keys):
            return length
        with self._lock:
            # Before any block is added, so that none of this chain is evicted for another of it.
            self._memory.touch(keys)
        plan, slower = self._plan(keys, first)
        self._counts.slower += slower
        done = self._write_blocks(runner, slot, keys, first, plan)
        used = keys[: first + done]
        with self._lock:
            self._memory.touch(used)
            self._counts.hits += done * self._block_tokens
            self._counts.misses += (len(keys) - first - done) * self._block_tokens
        if self._store and used:
            self._store.touch(used)
        return runner.length(slot)

    def save(
        self, runner: Runner, slot: int, tokens: Sequence[int], tenant: str, *, upto: int, memory: bool = True
    ) -> None:
        """Read the complete blocks of `tokens[:upto]` from the slot and cache those that are not cached yet.

        They replace a computation later, so they must have been computed exactly (`Chunk.exact`).

        Args:
            runner: The runner of the model with this fingerprint.
            slot: Contains at least `tokens[:upto]`.
            tokens: The slot's tokens.
            tenant: The prompt's tenant.
            upto: Number of tokens to cache, from the first.
            memory: Cache them in memory too, not on disk alone, because the slot is about to be overwritten.
        """
        if not memory and self._store is None:
            return
        keys = self._keys(tokens[: min(upto, runner.length(slot))], tenant)
        to_disk = self._store is not None and self._rates.should_restore("disk")
        with self._lock:
            self._memory.touch(keys)
        for number, key in enumerate(keys):
            with self._lock:
                data = self._memory.get(key)
            to_memory = memory and data is None and number < self._memory_fits
            to_disk = to_disk and number < self._disk_fits
            if not to_memory and not (to_disk and self._store and key not in self._store):
                continue
            if data is None:
                start = number * self._block_tokens
                try:
                    data = self._checked(runner.read_kv(slot, start, start + self._block_tokens))
                except (RunnerError, MemoryError) as error:
                    logger.warning("a prefix is not cached: %s", error)
                    break
            if to_memory:
                self._remember(key, data)
            if to_disk and self._store:
                # After a dropped block, the rest of the chain would be unreachable.
                to_disk = self._store.put(key, data)
        with self._lock:
            self._memory.touch(keys)
        if self._store and keys:
            self._store.touch(keys)

    def computed(self, tokens: int, seconds: float) -> None:
        """Record the duration of a prefill step, for comparison with restoring."""
        self._rates.computed(tokens, seconds)

    def stats(self) -> PrefixStats:
        """Return the counters."""
        disk = self._store.stats() if self._store else None
        with self._lock:
            return PrefixStats(
                hits=self._counts.hits,
                misses=self._counts.misses,
                from_memory_bytes=self._counts.restored["memory"],
                from_disk_bytes=self._counts.restored["disk"],
                memory_bytes=self._memory.used,
                memory_evictions=self._counts.evictions,
                slower=self._counts.slower,
                disk=disk,
            )

    def close(self, flush_s: float = 5.0) -> None:
        """Clear the memory, and let the store write queued blocks for at most `flush_s`."""
        with self._lock:
            self._memory = Lru()
        if self._store:
            self._store.close(flush_s)

    def _keys(self, tokens: Sequence[int], tenant: str) -> list[bytes]:
        root = root_key(self._fingerprint, self._block_tokens, tenant)
        return block_keys(root, tokens, self._block_tokens)

    def _plan(self, keys: Sequence[bytes], first: int) -> tuple[list[bytes | None], bool]:
        """Plan which blocks to restore, from block `first` on.

        Returns:
            The blocks, None for each one to read from disk; and whether the next one is cached but faster to compute.
        """
        memory, disk = self._rates.should_restore("memory"), self._rates.should_restore("disk")
        plan: list[bytes | None] = []
        for key in keys[first:]:
            with self._lock:
                data = self._memory.get(key)
            if data is not None and memory:
                plan.append(data)
            elif data is None and disk and self._store is not None and key in self._store:
                plan.append(None)
            else:
                cached = data is not None or (self._store is not None and key in self._store)
                return plan, cached
        return plan, False

    def _write_blocks(
        self, runner: Runner, slot: int, keys: Sequence[bytes], first: int, plan: Sequence[bytes | None]
    ) -> int:
        """Append the planned blocks to the slot; returns how many were written."""
        on_disk = [key for key, block in zip(keys[first:], plan, strict=False) if block is None]
        done: dict[Source, int] = {"memory": 0, "disk": 0}
        spent: dict[Source, float] = {"memory": 0.0, "disk": 0.0}
        with ExitStack() as stack:
            ahead = stack.enter_context(closing(ReadAhead(self._store, on_disk))) if self._store and on_disk else None
            for number, planned in enumerate(plan, first):
                source: Source = "disk" if planned is None else "memory"
                started = time.monotonic()
                timeout = self._timeout_s(len(on_disk) - done["disk"])
                block = ahead.next(timeout) if planned is None and ahead else planned
                written = block is not None and self._write(runner, slot, number, block)
                took = time.monotonic() - started
                spent[source] += took
                if not written:
                    if block is None and took >= timeout and self._store:
                        self._rates.fetched("disk", self._block_tokens, took)
                        self._store.mark_stalled()
                    break
                done[source] += 1
                if block is not None and source == "disk" and number < self._memory_fits:
                    self._remember(keys[number], block)
                # Stop if the disk is slower than the model; the blocks written so far stay.
                cost = self._rates.compute_s(done["disk"] * self._block_tokens)
                if source == "disk" and done["disk"] > 1 and cost is not None and spent["disk"] > cost:
                    self._counts.slower += 1
                    break
        for source, blocks in done.items():
            self._rates.fetched(source, blocks * self._block_tokens, spent[source])
            self._counts.restored[source] += blocks * self._block_bytes
        return sum(done.values())

    def _write(self, runner: Runner, slot: int, number: int, block: bytes) -> bool:
        """Append one block to the slot; returns whether it was written."""
        start = number * self._block_tokens
        try:
            runner.write_kv(slot, start, self._checked(block))
        except RunnerError as error:
            logger.warning("a cached prefix cannot be restored: %s", error)
            if runner.length(slot) > start:
                runner.truncate(slot, start)
            return False
        return True

    def _checked(self, block: bytes) -> bytes:
        if len(block) != self._block_bytes:
            raise RunnerError(f"a block has {self._block_bytes} bytes, not {len(block)}")
        return block

    def _timeout_s(self, blocks: int) -> float:
        """How long to wait for a block from disk while so many remain: a fraction of the time that they save."""
        one = self._rates.compute_s(self._block_tokens)
        return _DEFAULT_TIMEOUT_S if one is None else max(2 * one, blocks * one / 4)

    def _remember(self, key: bytes, data: bytes) -> None:
        with self._lock:
            self._memory.put(key, data, len(data))
            while self._memory.used > self._memory_bytes:
                oldest = self._memory.oldest()
                if oldest is None:
                    break
                self._memory.remove(oldest)
                self._counts.evictions += 1
