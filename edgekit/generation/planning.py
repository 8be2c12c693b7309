"""What each running answer does in a step: the tokens that are known, and guesses of those that follow.

Answers whose next tokens are known (a prompt, a grammar's fast-forward, right guesses) take several at once. Of the
prompts one goes along, a piece so short that running answers hardly wait for it. Guesses take only the memory that is
left. It runs nothing and decides nothing about who has a slot.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.generation.drafting import Drafters
from edgekit.generation.sequence import Sequence
from edgekit.generation.slots import Slots
from edgekit.generation.step_cost import StepTimes
from edgekit.runners.base import Chunk, Limits

__all__ = ["Planned", "Planner", "slot_of"]

# Rows of a pass that guesses may fill, all answers together.
_ROWS = 16
# Known tokens that an answer takes in one step; more of them go in pieces, as a prompt does.
_FORCED = 64


@dataclass(frozen=True, slots=True)
class Planned:
    """What one answer does in a step.

    Attributes:
        held: Tokens that its slot holds before.
        drafted: Guesses, at the end of the chunk.
        whole: All of its tokens are in the runner afterwards, so that the next is chosen.
    """

    sequence: Sequence
    chunk: Chunk
    held: int
    drafted: list[int]
    whole: bool


class Planner:
    """Plans the steps of one engine.

    Args:
        slots: What they hold, and what memory is left.
        limits: The runner's.
        times: What steps take.
        drafters: Told of each step.
    """

    def __init__(self, slots: Slots, limits: Limits, times: StepTimes, drafters: Drafters) -> None:
        self._slots = slots
        self._limits = limits
        self._times = times
        self._drafters = drafters
        self._eldest = False

    def begin_step(self) -> None:
        """A new step is planned; `known` may be asked more than once for it."""
        self._eldest = not self._eldest
        self._drafters.begin_step()

    def known(self, running: Ordered[Sequence]) -> list[Planned]:
        """What answers do that have a slot, without guesses: each takes its next token, and one prompt a piece."""
        decoding = [sequence for sequence in running if self._decodes(sequence)]
        planned = [self._next_token(sequence) for sequence in decoding]
        prefilling = self._next_prompt(running)
        if prefilling is not None:
            planned.append(self._piece(prefilling, busy=bool(decoding)))
        return planned

    def guess(self, planned: Ordered[Planned], *, beside: int) -> list[Planned]:
        """Add guesses where the next token is decided, as far as memory goes.

        Args:
            planned: Of `known`; there is room for it.
            beside: Answers that run beside each.
        """
        spare = self._slots.room - self.grown(planned)
        guessing = []
        for one in planned:
            guessing.append(self._guessed(one, spare, beside) if self._decodes(one.sequence) else one)
            spare -= self.grown(guessing[-1:]) - self.grown([one])
        # What answers do not use makes room for them.
        self._slots.make_room(self.grown(guessing))
        return guessing

    def grown(self, planned: Ordered[Planned]) -> int:
        """Tokens that the slots take more memory for."""
        return sum(max(0, one.held + len(one.chunk.tokens) - self._slots.high(one.chunk.slot)) for one in planned)

    def _guessed(self, one: Planned, spare: int, beside: int) -> Planned:
        sequence, slot, end = one.sequence, one.chunk.slot, one.held + len(one.chunk.tokens)
        room = min(self._limits.max_chunk - len(one.chunk.tokens), self._limits.context_length - end)
        room = min(room, spare + max(0, self._slots.high(slot) - end))
        if beside:
            # A pass has as many rows for each answer as the longest needs. One guess is free where rows are in pairs;
            # and an answer that need not be exact would leave the batch of single tokens for it.
            room = min(room, max(1, _ROWS // (beside + 1) - 1) if sequence.exact else 0)
        drafted = sequence.draft(room)
        if not drafted:
            return one
        chunk = Chunk(slot, [*one.chunk.tokens, *drafted], "all", exact=sequence.exact)
        return replace(one, chunk=chunk, drafted=drafted)

    def _next_token(self, sequence: Sequence) -> Planned:
        slot = slot_of(sequence)
        held = self._slots.length(slot)
        return Planned(sequence, Chunk(slot, sequence.tokens[held:], exact=sequence.exact), held, [], whole=True)

    def _next_prompt(self, running: Ordered[Sequence]) -> Sequence | None:
        """Whose known tokens the runner takes in this step: the shortest rest, but the eldest every other time."""
        waiting = [sequence for sequence in running if not self._decodes(sequence)]
        if not waiting:
            return None
        return waiting[0] if self._eldest else min(waiting, key=self._missing)

    def _piece(self, sequence: Sequence, *, busy: bool) -> Planned:
        slot = slot_of(sequence)
        held = self._slots.length(slot)
        most = self._limits.max_chunk
        if busy:
            most = self._times.piece(most)
        tokens = sequence.piece(held, most)
        whole = held + len(tokens) == len(sequence.tokens)
        wanted: Literal["none", "last", "all"] = "all" if sequence.scoring else "last" if whole else "none"
        # Prompts are always computed exactly: what begins alike can then be shared.
        return Planned(sequence, Chunk(slot, tokens, wanted, exact=True), held, [], whole)

    def _decodes(self, sequence: Sequence) -> bool:
        """Whether its next token is decided in every step; a grammar may have made a few of them known already."""
        missing = self._missing(sequence)
        return missing == 1 or (sequence.made > 0 and missing <= min(_FORCED, self._limits.max_chunk))

    def _missing(self, sequence: Sequence) -> int:
        return len(sequence.tokens) - self._slots.length(slot_of(sequence))


def slot_of(sequence: Sequence) -> int:
    """The slot of an answer that has one."""
    assert sequence.slot is not None  # noqa: S101  running answers have one
    return sequence.slot
