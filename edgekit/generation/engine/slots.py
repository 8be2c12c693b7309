"""Assigns sequence slots to sequences. A free slot keeps its KV cache for prefix reuse until the memory is needed.

A prompt goes to the free slot with the longest common prefix, and only the rest is computed; or the prefix is copied
from a busy slot, or restored from the prefix cache. Only KV cache that was computed exactly (`Chunk.exact`) is reused,
so output does not depend on the slot's history.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgekit.generation.prefix import PrefixCache
from edgekit.runners.base import Runner

__all__ = ["Slots"]

logger = logging.getLogger(__name__)

# Tokens: a shorter prefix is faster to compute than to look up.
_MIN_REUSE = 16
# Tokens kept free for each running sequence when another one is admitted.
_HEADROOM = 32


@dataclass(slots=True)
class _Slot:
    """State of one slot.

    Attributes:
        tokens: The tokens in its KV cache; always as many as the runner's length of the slot.
        exact: Number of leading tokens that were computed exactly.
        high_water: Maximum tokens since it was last emptied: its memory.
        last_used: Logical time of the last use.
        private: Not reused for other requests.
    """

    tokens: list[int] = field(default_factory=list)
    exact: int = 0
    high_water: int = 0
    tenant: str = ""
    busy: bool = False
    last_used: int = 0
    private: bool = False


class Slots:
    """The sequence slots of one runner.

    Args:
        runner: Used here to move and truncate KV cache; the caller of `advance` computes it.
        budget_bytes: Maximum KV cache of all slots; None is their capacity.
        prefix: Keeps KV cache that has left the slots.

    Attributes:
        max_tokens: The budget. A slot takes as many tokens of it as it holds, or more (`Limits.positions_of`).
    """

    def __init__(self, runner: Runner, *, budget_bytes: int | None = None, prefix: PrefixCache | None = None) -> None:
        limits = runner.limits
        self._runner = runner
        self._prefix = prefix
        self._slots = [_Slot() for _ in range(limits.sequence_slots)]
        self._limits = limits
        self._per_token = limits.kv_bytes_per_token
        capacity = limits.kv_positions
        self.max_tokens = capacity if budget_bytes is None else min(capacity, budget_bytes // max(1, self._per_token))
        self._clock = 0

    @property
    def free(self) -> int:
        """Number of free slots."""
        return sum(not slot.busy for slot in self._slots)

    @property
    def kv_bytes(self) -> int:
        """KV cache that all slots take."""
        return self._taken(self._slots) * self._per_token

    @property
    def free_tokens(self) -> int:
        """Tokens of the budget that busy slots do not occupy."""
        return self.max_tokens - self._taken(slot for slot in self._slots if slot.busy)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that fits, alone."""
        return self._limits.tokens_in(self.max_tokens)

    def length(self, number: int) -> int:
        """Tokens in a slot."""
        return len(self._slots[number].tokens)

    def growth(self, number: int, length: int) -> int:
        """Tokens of the budget that a slot takes in addition if it holds `length` tokens."""
        return max(0, self._limits.positions_of(length) - self._positions(self._slots[number]))

    def most(self, number: int, free: int) -> int:
        """Tokens that a slot can hold if it takes so many tokens of the budget in addition."""
        return self._limits.tokens_in(self._positions(self._slots[number]) + free)

    def slot_bytes(self, number: int) -> int:
        """KV cache of a slot's tokens, in bytes."""
        return len(self._slots[number].tokens) * self._per_token

    def acquire(
        self, tokens: Sequence[int], tenant: str, *, reuse: bool = True, private: bool = False
    ) -> tuple[int, int] | None:
        """Assign a slot to a sequence and fill it with the longest available prefix.

        Args:
            tokens: The sequence; its last token is always left to compute.
            tenant: Only KV cache of this tenant is reused.
            reuse: Existing KV cache may be used.
            private: The slot's KV cache is not reused for other requests.

        Returns:
            The slot and its length; None if no slot or not enough memory is free. In that case nothing was changed, and
            no prefix was looked up, because a waiting sequence tries again in every step.
        """
        free = self._free_slots()
        if not free or not self._fits(len(tokens)):
            return None
        limit = len(tokens) - 1 if reuse else 0
        shared = [self._common_prefix(slot, tokens, tenant, limit) for slot in self._slots]
        best = max(free, key=lambda number: shared[number])
        source = max(range(len(shared)), key=lambda number: shared[number])
        cached = 0 if self._prefix is None or not reuse else self._prefix.lookup(tokens, tenant)
        if shared[best] < _MIN_REUSE or shared[best] < max(shared[source], cached):
            # Not in a free slot.
            best = self._victim(free)
            if shared[source] >= max(_MIN_REUSE, cached) and self._slots[source].busy:
                return self._assign(best, tokens, tenant, copy_from=source, count=shared[source])
            return self._assign(best, tokens, tenant, restore=cached > 0, private=private)
        return self._assign(best, tokens, tenant, count=shared[best], in_place=True)

    def advance(self, number: int, tokens: Sequence[int], *, exact: bool) -> None:
        """Record that the runner has appended tokens to a slot."""
        slot = self._slots[number]
        if exact and slot.exact == len(slot.tokens):
            slot.exact += len(tokens)
        slot.tokens += tokens
        slot.high_water = max(slot.high_water, len(slot.tokens))

    def save(self, number: int, *, upto: int) -> None:
        """Save the slot's first `upto` tokens to the prefix cache on disk."""
        self._save(number, upto, memory=False)

    def truncate(self, number: int, length: int) -> None:
        """Drop a slot's tokens from `length` on."""
        slot = self._slots[number]
        if length < len(slot.tokens):
            self._runner.truncate(number, length)
            del slot.tokens[length:]
            slot.exact = min(slot.exact, length)

    def release(self, number: int, *, keep: bool = True) -> None:
        """Free a slot.

        Args:
            number: The slot.
            keep: Keep its KV cache for later prompts; otherwise it is emptied.
        """
        slot = self._slots[number]
        slot.busy = False
        self._touch(slot)
        if keep:
            # KV cache that was not computed exactly is never reused.
            self.truncate(number, slot.exact)
        else:
            self.empty(number)

    def empty(self, number: int) -> None:
        """Drop all of a slot's tokens and free its memory."""
        slot = self._slots[number]
        # First: if the runner fails, the tokens are not reused, and it is asked again before the slot is.
        slot.tokens, slot.exact = [], 0
        self._runner.truncate(number, 0)
        slot.high_water = 0

    def empty_any(self) -> int | None:
        """Empty one free slot and return it; None if all are busy."""
        free = self._free_slots()
        if not free:
            return None
        number = self._victim(free)
        self.empty(number)
        return number

    def reset(self) -> bool:
        """Free and empty all slots, after a fault that may have left them in any state.

        Returns:
            Whether the runner emptied all of them; a slot that it did not empty stays busy.
        """
        clean = True
        for number, slot in enumerate(self._slots):
            if self._try_empty(number):
                self._slots[number] = _Slot()
            else:
                clean, slot.busy = False, True
        return clean

    def _try_empty(self, number: int) -> bool:
        try:
            self._runner.truncate(number, 0)
        except Exception:
            logger.exception("sequence slot %d cannot be emptied", number)
            return False
        return True

    def make_room(self, tokens: int) -> bool:
        """Empty free slots until so many more tokens fit; returns whether they do."""
        while self._taken(self._slots) + tokens > self.max_tokens:
            evictable = [number for number, slot in enumerate(self._slots) if not slot.busy and slot.high_water]
            if not evictable:
                return False
            self.empty(min(evictable, key=lambda number: self._slots[number].last_used))
        return True

    def _free_slots(self) -> list[int]:
        return [number for number, slot in enumerate(self._slots) if not slot.busy]

    def _victim(self, numbers: Sequence[int]) -> int:
        """The slot to overwrite: an empty one, else the least recently used."""
        return min(
            numbers, key=lambda number: (len(self._slots[number].tokens) > 0, self._slots[number].last_used, number)
        )

    def _fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can be admitted, with all free slots emptied if need be."""
        busy = [slot for slot in self._slots if slot.busy]
        # Running sequences need headroom to grow, or they would soon preempt this one.
        return self._taken(busy, _HEADROOM) + self._limits.positions_of(tokens) <= self.max_tokens

    def _positions(self, slot: _Slot, more: int = 0) -> int:
        """What a slot takes of the budget, with so many tokens more."""
        return self._limits.positions_of(slot.high_water + more)

    def _taken(self, slots: Iterable[_Slot], more: int = 0) -> int:
        return sum(self._positions(slot, more) for slot in slots)

    def _assign(
        self,
        number: int,
        tokens: Sequence[int],
        tenant: str,
        *,
        copy_from: int | None = None,
        count: int = 0,
        in_place: bool = False,
        restore: bool = False,
        private: bool = False,
    ) -> tuple[int, int]:
        slot = self._slots[number]
        slot.busy = True
        try:
            if in_place:
                self.truncate(number, count)
            else:
                # KV cache enters the in-memory prefix cache only now: in its slot it need not be stored twice.
                self._save(number, slot.exact, memory=True)
                self.empty(number)
            # This succeeds: `_fits` has counted it.
            others = [other for other in self._slots if other.busy and other is not slot]
            headroom = self._taken(others, _HEADROOM) - self._taken(others)
            self.make_room(self.growth(number, len(tokens)) + headroom)
            slot.tenant, slot.private = tenant, private
            self._touch(slot)
            if copy_from is not None:
                self._runner.write_kv(number, 0, self._runner.read_kv(copy_from, 0, count))
                self.advance(number, list(tokens[:count]), exact=True)
            elif restore and self._prefix is not None:
                restored = self._prefix.restore(self._runner, number, tokens, tenant)
                self.advance(number, list(tokens[:restored]), exact=True)
        except BaseException:
            self.release(number, keep=False)
            raise
        return number, len(slot.tokens)

    def _save(self, number: int, upto: int, *, memory: bool) -> None:
        slot = self._slots[number]
        upto = min(upto, slot.exact)
        if self._prefix is not None and upto and not slot.private:
            self._prefix.save(self._runner, number, slot.tokens, slot.tenant, upto=upto, memory=memory)

    def _common_prefix(self, slot: _Slot, tokens: Sequence[int], tenant: str, limit: int) -> int:
        if slot.tenant != tenant or slot.private:
            return 0
        limit = min(limit, slot.exact)
        if slot.tokens[:limit] == list(tokens[:limit]):
            return limit
        return next(index for index in range(limit) if slot.tokens[index] != tokens[index])

    def _touch(self, slot: _Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock
