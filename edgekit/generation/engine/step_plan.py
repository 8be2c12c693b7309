"""Batching policy: which tokens of each running sequence go into a step, draft tokens included.

A decoding sequence runs all its pending tokens in one step: the last sampled one and tokens forced by a grammar. One
prompt is prefilled per step, in chunks short enough not to delay the decoding sequences noticeably. Draft tokens take
only memory that is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.generation.engine.sequence import SequenceState
from edgekit.generation.engine.slots import Slots
from edgekit.generation.speculative.drafters import Drafters
from edgekit.generation.speculative.step_cost import StepTimes
from edgekit.runners.base import Chunk, Limits

__all__ = ["ScheduledChunk", "StepPlanner", "slot_of"]

# Rows of a step that verification may fill, over all sequences.
_MAX_VERIFY_ROWS = 16
# A decoding sequence with more pending tokens than this is chunked like a prompt.
_MAX_PENDING = 64


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """One sequence's part of a step.

    Attributes:
        start: Length of its slot before the step.
        drafted: Draft tokens, at the end of the chunk.
        samples: The chunk reaches the end of the sequence, so the next token is sampled.
    """

    sequence: SequenceState
    chunk: Chunk
    start: int
    drafted: list[int]
    samples: bool


class StepPlanner:
    """Plans the steps of one engine.

    Args:
        slots: Their lengths, and the free memory.
        limits: The runner's.
        times: Measured step times.
        drafters: Notified of each step.
    """

    def __init__(self, slots: Slots, limits: Limits, times: StepTimes, drafters: Drafters) -> None:
        self._slots = slots
        self._limits = limits
        self._times = times
        self._drafters = drafters
        self._oldest_first = False

    def begin_step(self) -> None:
        """Start planning a step; `schedule` may be called more than once for it."""
        self._oldest_first = not self._oldest_first
        self._drafters.begin_step()

    def schedule(self, running: Sequence[SequenceState]) -> list[ScheduledChunk]:
        """Schedule pending tokens: the decode chunks, and a prefill chunk of one prompt."""
        decoding = [sequence for sequence in running if self._is_decoding(sequence)]
        planned = [self._decode_chunk(sequence) for sequence in decoding]
        prefilling = self._next_prefill(running)
        if prefilling is not None:
            planned.append(self._prefill_chunk(prefilling, decoding=bool(decoding)))
        return planned

    def add_drafts(self, planned: Sequence[ScheduledChunk], *, others: int) -> list[ScheduledChunk]:
        """Append draft tokens to the decode chunks, as far as memory is free.

        Args:
            planned: From `schedule`; it fits.
            others: Number of sequences that run beside each one.
        """
        free = self._slots.free_tokens - self.growth(planned)
        result = []
        for one in planned:
            result.append(self._with_drafts(one, free, others) if self._is_decoding(one.sequence) else one)
            free -= self.growth(result[-1:]) - self.growth([one])
        # Free slots give up their KV cache for it.
        self._slots.make_room(self.growth(result))
        return result

    def growth(self, planned: Sequence[ScheduledChunk]) -> int:
        """Tokens by which the slots' memory grows."""
        return sum(self._slots.growth(one.chunk.slot, one.start + len(one.chunk.tokens)) for one in planned)

    def observe(self, planned: Sequence[ScheduledChunk], seconds: float) -> int:
        """Record the step's time; returns the number of prefill tokens if it measured prefill speed, else 0."""
        tokens = len(planned[0].chunk.tokens) if len(planned) == 1 else 0
        if tokens and planned[0].samples:
            self._times.observe_single(tokens, seconds)
        if not any(one.start < one.sequence.prompt_length or len(one.chunk.tokens) > 1 for one in planned):
            self._times.observe_decode(seconds)
        elif tokens and self._times.observe_prefill(tokens, seconds):
            return tokens
        return 0

    def _with_drafts(self, one: ScheduledChunk, free: int, others: int) -> ScheduledChunk:
        sequence, slot, end = one.sequence, one.chunk.slot, one.start + len(one.chunk.tokens)
        limit = min(self._limits.max_chunk - len(one.chunk.tokens), self._limits.context_length - end)
        limit = min(limit, self._slots.most(slot, free) - end)
        if others:
            # A step has as many rows for each sequence as the longest needs. One draft token is free where rows come in
            # pairs; and a sequence that need not be exact would leave the batch of single tokens for it.
            limit = min(limit, max(1, _MAX_VERIFY_ROWS // (others + 1) - 1) if sequence.exact else 0)
        drafted = sequence.draft(limit)
        if not drafted:
            return one
        chunk = Chunk(slot, [*one.chunk.tokens, *drafted], "all", exact=sequence.exact)
        return replace(one, chunk=chunk, drafted=drafted)

    def _decode_chunk(self, sequence: SequenceState) -> ScheduledChunk:
        slot = slot_of(sequence)
        start = self._slots.length(slot)
        chunk = Chunk(slot, sequence.tokens[start:], exact=sequence.exact)
        return ScheduledChunk(sequence, chunk, start, [], samples=True)

    def _next_prefill(self, running: Sequence[SequenceState]) -> SequenceState | None:
        """The sequence to prefill: the one with the fewest pending tokens, and in every other step the oldest."""
        prefilling = [sequence for sequence in running if not self._is_decoding(sequence)]
        if not prefilling:
            return None
        return prefilling[0] if self._oldest_first else min(prefilling, key=self._pending)

    def _prefill_chunk(self, sequence: SequenceState, *, decoding: bool) -> ScheduledChunk:
        slot = slot_of(sequence)
        start = self._slots.length(slot)
        limit = self._limits.max_chunk
        if decoding:
            limit = self._times.prefill_chunk_size(limit)
        tokens = sequence.next_chunk(start, limit)
        samples = start + len(tokens) == len(sequence.tokens)
        logits: Literal["none", "last", "all"] = "all" if sequence.scoring else "last" if samples else "none"
        # Prompts are always computed exactly, so that their prefixes can be reused.
        return ScheduledChunk(sequence, Chunk(slot, tokens, logits, exact=True), start, [], samples)

    def _is_decoding(self, sequence: SequenceState) -> bool:
        """Whether it samples a token in every step; a grammar may have forced a few pending ones."""
        pending = self._pending(sequence)
        return pending == 1 or (sequence.generated > 0 and pending <= min(_MAX_PENDING, self._limits.max_chunk))

    def _pending(self, sequence: SequenceState) -> int:
        return len(sequence.tokens) - self._slots.length(slot_of(sequence))


def slot_of(sequence: SequenceState) -> int:
    """Return the slot of a running sequence."""
    assert sequence.slot is not None  # noqa: S101  running sequences have one
    return sequence.slot
