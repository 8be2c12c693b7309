"""The prefix cache: KV cache of prompts' beginnings, in memory and on disk, put back where computing would be slower.

A prompt is cut into blocks of a fixed number of tokens; a block's name (`keys`) stands for everything up to its end,
so conversations that begin alike share blocks, and tenants or models never do. It decides what to keep and whether to
put it back; how a runner lays out its KV cache it does not know, nor who asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from edgekit.errors import RunnerError
from edgekit.generation.prefix.ahead import ReadAhead
from edgekit.generation.prefix.disk import DiskStats, DiskStore
from edgekit.generation.prefix.keys import block_keys, root_key
from edgekit.generation.prefix.lru import Lru
from edgekit.generation.prefix.pace import Pace, Source
from edgekit.runners.base import Runner

__all__ = ["BLOCK_TOKENS", "PrefixCache", "PrefixStats"]

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 32
"""Tokens of a block unless said otherwise.

Half a block is lost where a prefix ends, on average, and computing those tokens costs more than finer blocks do: with
blocks of 32 to 256 tokens, putting 1,472 tokens back took the same time.
"""

# How long a block from disk is waited for before it is known how fast the model computes.
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counters since the start, and what is there now. Tokens, unless the name says otherwise.

    Attributes:
        hits: Put back by `restore`.
        misses: Of whole blocks `restore` was asked for and did not put back.
        from_memory_bytes: KV cache put back from memory.
        from_disk_bytes: KV cache put back from disk.
        memory_bytes: KV cache in memory now.
        memory_evictions: Blocks that memory gave up to make room.
        slower: How often held blocks were left to be computed, because that was faster.
        disk: The store's own; None without one.
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
        store: The disk's part, which the cache closes; None keeps blocks in memory only.
        memory_bytes: Most KV cache kept in memory; 0 keeps none there.
        block_tokens: Tokens of a block; even, because a runner's exact way computes rows in pairs.
        kv_bytes_per_token: The runner's.
        fingerprint: Of the model (`keys.model_fingerprint`).
        pace: Tests bring their own.
    """

    def __init__(
        self,
        store: DiskStore | None,
        *,
        memory_bytes: int,
        block_tokens: int = BLOCK_TOKENS,
        kv_bytes_per_token: int,
        fingerprint: str,
        pace: Pace | None = None,
    ) -> None:
        if block_tokens < 2 or block_tokens % 2 or kv_bytes_per_token < 1:
            raise ValueError("a block holds an even number of tokens, and a token some bytes of KV cache")
        self._store = store
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * kv_bytes_per_token
        self._fingerprint = fingerprint
        self._pace = pace or Pace()
        self._memory: Lru[bytes] = Lru()
        self._memory_bytes = memory_bytes
        # Blocks of one chain that fit at once: more would push out the chain's own beginning.
        self._memory_fits = memory_bytes // self._block_bytes
        self._disk_fits = store.capacity(self._block_bytes) if store else 0
        self._counts = _Counts()
        self._lock = threading.Lock()

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self._block_tokens

    def lookup(self, tokens: Sequence[int], tenant: str) -> int:
        """Return how many of a prompt's first tokens `restore` would put back.

        At least one token of the prompt is left to compute, since its logits are wanted.

        Args:
            tokens: The whole prompt.
            tenant: Whose it is.
        """
        keys = self._keys(tokens[:-1], tenant)
        plan, _ = self._plan(keys, 0)
        return len(plan) * self._block_tokens

    def restore(self, runner: Runner, slot: int, tokens: Sequence[int], tenant: str) -> int:
        """Put back what is held of a prompt, behind what the slot holds of it already.

        Args:
            runner: Of the model the fingerprint names.
            slot: Holds nothing, or the first whole blocks of `tokens`.
            tokens: The whole prompt; at least its last token is left to compute.
            tenant: Whose it is.

        Returns:
            Tokens the slot holds now: as before, if nothing fits or computing is faster.
        """
        length = runner.length(slot)
        first, rest = divmod(length, self._block_tokens)
        keys = self._keys(tokens[:-1], tenant)
        if rest or first >= len(keys):
            return length
        with self._lock:
            # Before anything is added, so that nothing of this chain makes room for another part of it.
            self._memory.touch(keys)
        plan, slower = self._plan(keys, first)
        self._counts.slower += slower
        done = self._put_back(runner, slot, keys, first, plan)
        held = keys[: first + done]
        with self._lock:
            self._memory.touch(held)
            self._counts.hits += done * self._block_tokens
            self._counts.misses += (len(keys) - first - done) * self._block_tokens
        if self._store and held:
            self._store.touch(held)
        return runner.length(slot)

    def save(
        self, runner: Runner, slot: int, tokens: Sequence[int], tenant: str, *, upto: int, memory: bool = True
    ) -> None:
        """Keep the whole blocks of `tokens[:upto]` that are not held yet, read from the slot.

        What is kept will stand in for a computation, so it must have been computed exactly (`Chunk.exact`).

        Args:
            runner: Of the model the fingerprint names.
            slot: Holds at least `tokens[:upto]`.
            tokens: What the slot holds.
            tenant: Whose it is.
            upto: Tokens to keep, from the first.
            memory: Keep them in memory too, and not on disk alone: the slot will not hold them for long.
        """
        if not memory and self._store is None:
            return
        keys = self._keys(tokens[: min(upto, runner.length(slot))], tenant)
        to_disk = self._store is not None and self._pace.pays("disk")
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
                    logger.warning("a prefix is not kept: %s", error)
                    break
            if to_memory:
                self._remember(key, data)
            if to_disk and self._store:
                # Once one is dropped the following ones would have nothing to follow.
                to_disk = self._store.put(key, data)
        with self._lock:
            self._memory.touch(keys)
        if self._store and keys:
            self._store.touch(keys)

    def computed(self, tokens: int, seconds: float) -> None:
        """Note how long a step of prefill took: what putting back is measured against."""
        self._pace.computed(tokens, seconds)

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
        """Forget what is in memory, and let the store write what is queued, for at most so long."""
        with self._lock:
            self._memory = Lru()
        if self._store:
            self._store.close(flush_s)

    def _keys(self, tokens: Sequence[int], tenant: str) -> list[bytes]:
        root = root_key(self._fingerprint, self._block_tokens, tenant)
        return block_keys(root, tokens, self._block_tokens)

    def _plan(self, keys: Sequence[bytes], first: int) -> tuple[list[bytes | None], bool]:
        """What to put back from block `first` on.

        Returns:
            Each block, or None where it is to be read from disk; and whether more is held that is faster computed.
        """
        memory, disk = self._pace.pays("memory"), self._pace.pays("disk")
        plan: list[bytes | None] = []
        for key in keys[first:]:
            with self._lock:
                data = self._memory.get(key)
            if data is not None and memory:
                plan.append(data)
            elif data is None and disk and self._store is not None and key in self._store:
                plan.append(None)
            else:
                held = data is not None or (self._store is not None and key in self._store)
                return plan, held
        return plan, False

    def _put_back(
        self, runner: Runner, slot: int, keys: Sequence[bytes], first: int, plan: Sequence[bytes | None]
    ) -> int:
        """Write the plan's blocks behind what the slot holds; return how many."""
        on_disk = [key for key, block in zip(keys[first:], plan, strict=False) if block is None]
        done: dict[Source, int] = {"memory": 0, "disk": 0}
        spent: dict[Source, float] = {"memory": 0.0, "disk": 0.0}
        with ExitStack() as stack:
            ahead = stack.enter_context(closing(ReadAhead(self._store, on_disk))) if self._store and on_disk else None
            for number, planned in enumerate(plan, first):
                source: Source = "disk" if planned is None else "memory"
                started = time.monotonic()
                limit = self._patience(len(on_disk) - done["disk"])
                block = ahead.next(limit) if planned is None and ahead else planned
                written = block is not None and self._write(runner, slot, number, block)
                took = time.monotonic() - started
                spent[source] += took
                if not written:
                    if block is None and took >= limit and self._store:
                        self._pace.fetched("disk", self._block_tokens, took)
                        self._store.late()
                    break
                done[source] += 1
                if block is not None and source == "disk" and number < self._memory_fits:
                    self._remember(keys[number], block)
                # A disk slower than the model is found out here; what it has brought so far is kept.
                cost = self._pace.to_compute(done["disk"] * self._block_tokens)
                if source == "disk" and done["disk"] > 1 and cost is not None and spent["disk"] > cost:
                    self._counts.slower += 1
                    break
        for source, blocks in done.items():
            self._pace.fetched(source, blocks * self._block_tokens, spent[source])
            self._counts.restored[source] += blocks * self._block_bytes
        return sum(done.values())

    def _write(self, runner: Runner, slot: int, number: int, block: bytes) -> bool:
        """Append one block to the slot; whether it went in."""
        start = number * self._block_tokens
        try:
            runner.write_kv(slot, start, self._checked(block))
        except RunnerError as error:
            logger.warning("a cached prefix does not fit: %s", error)
            if runner.length(slot) > start:
                runner.truncate(slot, start)
            return False
        return True

    def _checked(self, block: bytes) -> bytes:
        if len(block) != self._block_bytes:
            raise RunnerError(f"a block has {self._block_bytes} bytes, not {len(block)}")
        return block

    def _patience(self, blocks: int) -> float:
        """Seconds to wait for a block from disk, while so many are to come: a part of what they save."""
        one = self._pace.to_compute(self._block_tokens)
        return _PATIENCE_S if one is None else max(2 * one, blocks * one / 4)

    def _remember(self, key: bytes, data: bytes) -> None:
        with self._lock:
            self._memory.put(key, data, len(data))
            while self._memory.used > self._memory_bytes:
                oldest = self._memory.oldest()
                if oldest is None:
                    break
                self._memory.remove(oldest)
                self._counts.evictions += 1
