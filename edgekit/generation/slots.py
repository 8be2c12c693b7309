"""Who holds which sequence slot, and what lies in the others: KV cache is kept until its memory is wanted.

A slot whose answer has ended keeps its tokens. The next prompt that begins like them goes there and computes only the
rest; one that begins like a slot in use copies from it; else the prefix cache is asked. Whatever is reused was computed
exactly (`Chunk.exact`), so that an answer does not depend on what was there before. It knows no queue and no text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit.generation.prefix import PrefixCache
from edgekit.runners.base import Runner

__all__ = ["Slots"]

logger = logging.getLogger(__name__)

# A prefix shorter than this is quicker computed than looked after.
_WORTH = 16
# Tokens left free for each answer that runs, where another is to begin.
_SPARE = 32


@dataclass(slots=True)
class _Slot:
    """What one slot holds.

    Attributes:
        tokens: Those whose KV cache is there; the runner's length of the slot, always.
        exact: How many of them, from the first on, were computed exactly.
        high: Most it held since it was last emptied: its memory.
        used: Turn of the clock at which it was last used.
        private: Nobody else may reuse it.
    """

    tokens: list[int] = field(default_factory=list)
    exact: int = 0
    high: int = 0
    tenant: str = ""
    busy: bool = False
    used: int = 0
    private: bool = False


class Slots:
    """The slots of one runner.

    Args:
        runner: It is used here only to move and forget KV cache, and by `advance`'s caller to compute it.
        budget_bytes: Most KV cache in all slots together; None is what the slots can hold.
        prefix: Where KV cache is kept beyond the slots.
    """

    def __init__(self, runner: Runner, *, budget_bytes: int | None = None, prefix: PrefixCache | None = None) -> None:
        limits = runner.limits
        self._runner = runner
        self._prefix = prefix
        self._slots = [_Slot() for _ in range(limits.sequence_slots)]
        whole = limits.sequence_slots * limits.context_length
        self._per_token = limits.kv_bytes_per_token
        self.most_tokens = whole if budget_bytes is None else min(whole, budget_bytes // max(1, self._per_token))
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots that no answer uses."""
        return sum(not slot.busy for slot in self._slots)

    @property
    def kv_bytes(self) -> int:
        """KV cache in all slots."""
        return sum(slot.high for slot in self._slots) * self._per_token

    @property
    def room(self) -> int:
        """Tokens that fit beside what answers have memory for already."""
        return self.most_tokens - sum(slot.high for slot in self._slots if slot.busy)

    def length(self, number: int) -> int:
        """Tokens a slot holds."""
        return len(self._slots[number].tokens)

    def high(self, number: int) -> int:
        """Tokens that a slot has memory for already."""
        return self._slots[number].high

    def slot_bytes(self, number: int) -> int:
        """KV cache of the tokens that a slot holds."""
        return len(self._slots[number].tokens) * self._per_token

    def take(
        self, tokens: Sequence[int], tenant: str, *, reuse: bool = True, private: bool = False
    ) -> tuple[int, int] | None:
        """Give an answer a slot, with as much of its beginning as is there already.

        Args:
            tokens: What will be computed; the last of them always is.
            tenant: Only its own prompts are reused.
            reuse: What is there already may be used.
            private: Nobody else may use what will be there.

        Returns:
            The slot and the tokens it holds; None if no slot or no memory is free. Then nothing was touched, nor was
            the prompt looked for: whoever waits asks again at every step.
        """
        free = self._idle()
        if not free or not self._fits(len(tokens)):
            return None
        most = len(tokens) - 1 if reuse else 0
        shared = [self._shared(slot, tokens, tenant, most) for slot in self._slots]
        best = max(free, key=lambda number: shared[number])
        source = max(range(len(shared)), key=lambda number: shared[number])
        cached = 0 if self._prefix is None or not reuse else self._prefix.lookup(tokens, tenant)
        if shared[best] < _WORTH or shared[best] < max(shared[source], cached):
            # Not there.
            best = self._least_wanted(free)
            if shared[source] >= max(_WORTH, cached) and self._slots[source].busy:
                return self._begin(best, tokens, tenant, copy_from=source, count=shared[source])
            return self._begin(best, tokens, tenant, restore=cached > 0, private=private)
        return self._begin(best, tokens, tenant, count=shared[best], in_place=True)

    def advance(self, number: int, tokens: Sequence[int], *, exact: bool) -> None:
        """Note that the runner has appended tokens to a slot."""
        slot = self._slots[number]
        if exact and slot.exact == len(slot.tokens):
            slot.exact += len(tokens)
        slot.tokens += tokens
        slot.high = max(slot.high, len(slot.tokens))

    def save(self, number: int, *, upto: int) -> None:
        """Let the prefix cache have, on disk, what is there of the first `upto` tokens."""
        self._save(number, upto, memory=False)

    def cut(self, number: int, length: int) -> None:
        """Forget a slot's tokens from `length` on."""
        slot = self._slots[number]
        if length < len(slot.tokens):
            self._runner.truncate(number, length)
            del slot.tokens[length:]
            slot.exact = min(slot.exact, length)

    def release(self, number: int, *, keep: bool = True) -> None:
        """Take a slot back from an answer.

        Args:
            number: The slot.
            keep: What it holds may serve later prompts; otherwise it is forgotten.
        """
        slot = self._slots[number]
        slot.busy = False
        self._touch(slot)
        if keep:
            # What was not computed exactly would serve nobody.
            self.cut(number, slot.exact)
        else:
            self.empty(number)

    def empty(self, number: int) -> None:
        """Forget all that a slot holds, and give its memory back."""
        slot = self._slots[number]
        # First: if the runner refuses, nothing of it is used again, and it is asked again before the slot is.
        slot.tokens, slot.exact = [], 0
        self._runner.truncate(number, 0)
        slot.high = 0

    def clear(self) -> int | None:
        """Empty a slot that no answer uses, and return it; None if all are in use."""
        idle = self._idle()
        if not idle:
            return None
        number = self._least_wanted(idle)
        self.empty(number)
        return number

    def reset(self) -> bool:
        """Take all slots back and forget what they hold, after a fault that may have left anything behind.

        Returns:
            Whether the runner let go of all of them; those that it did not are given to nobody.
        """
        clean = True
        for number, slot in enumerate(self._slots):
            if self._let_go(number):
                self._slots[number] = _Slot()
            else:
                clean, slot.busy = False, True
        return clean

    def _let_go(self, number: int) -> bool:
        try:
            self._runner.truncate(number, 0)
        except Exception:
            logger.exception("sequence slot %d cannot be emptied", number)
            return False
        return True

    def make_room(self, tokens: int) -> bool:
        """Empty slots that no answer uses until so many more tokens fit; returns whether they do."""
        while sum(slot.high for slot in self._slots) + tokens > self.most_tokens:
            idle = [number for number, slot in enumerate(self._slots) if not slot.busy and slot.high]
            if not idle:
                return False
            self.empty(min(idle, key=lambda number: self._slots[number].used))
        return True

    def _idle(self) -> list[int]:
        return [number for number, slot in enumerate(self._slots) if not slot.busy]

    def _least_wanted(self, numbers: Sequence[int]) -> int:
        """An empty slot of these, else the one that was not used for longest."""
        return min(numbers, key=lambda number: (len(self._slots[number].tokens) > 0, self._slots[number].used, number))

    def _fits(self, tokens: int) -> bool:
        """Whether an answer of so many tokens may begin, once what no answer uses is emptied."""
        busy = [slot for slot in self._slots if slot.busy]
        # Those that run need room to grow, or they would soon push this one out again.
        return sum(slot.high for slot in busy) + tokens + _SPARE * len(busy) <= self.most_tokens

    def _begin(
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
                self.cut(number, count)
            else:
                # What leaves a slot goes on in memory; while it lies in the slot it need not be there twice.
                self._save(number, slot.exact, memory=True)
                self.empty(number)
            # There is as much: `_fits` has counted it.
            spare = _SPARE * sum(other.busy for other in self._slots if other is not slot)
            self.make_room(len(tokens) - slot.high + spare)
            slot.tenant, slot.private = tenant, private
            self._touch(slot)
            if copy_from is not None:
                self._runner.write_kv(number, 0, self._runner.read_kv(copy_from, 0, count))
                self.advance(number, list(tokens[:count]), exact=True)
            elif restore and self._prefix is not None:
                held = self._prefix.restore(self._runner, number, tokens, tenant)
                self.advance(number, list(tokens[:held]), exact=True)
        except BaseException:
            self.release(number, keep=False)
            raise
        return number, len(slot.tokens)

    def _save(self, number: int, upto: int, *, memory: bool) -> None:
        slot = self._slots[number]
        upto = min(upto, slot.exact)
        if self._prefix is not None and upto and not slot.private:
            self._prefix.save(self._runner, number, slot.tokens, slot.tenant, upto=upto, memory=memory)

    def _shared(self, slot: _Slot, tokens: Sequence[int], tenant: str, most: int) -> int:
        if slot.tenant != tenant or slot.private:
            return 0
        most = min(most, slot.exact)
        if slot.tokens[:most] == list(tokens[:most]):
            return most
        return next(index for index in range(most) if slot.tokens[index] != tokens[index])

    def _touch(self, slot: _Slot) -> None:
        self._clock += 1
        slot.used = self._clock
