"""Drafting with a smaller model of the same tokenizer, for all sequences of an engine.

`DraftRunner` is shared by the sequences: the draft model's runner, its sequence slots, its step times and its
acceptance rate. `DraftModel` drafts for one sequence. An error here costs speed only: no exception leaves this file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import first_line
from edgekit.generation.speculative.acceptance import AcceptanceRate
from edgekit.generation.speculative.step_cost import StepCost, best_draft_length
from edgekit.runners.base import Chunk, Limits, Runner

__all__ = ["DRAFT_MAX", "DraftModel", "DraftRunner"]

logger = logging.getLogger(__name__)

DRAFT_MAX = 8
"""Default maximum of draft tokens per step."""

# Acceptance rate before anything was observed: that of a model of the same family.
_PRIOR = 0.7
# Tokens after which a draft model that does not pay off is tried again, at first and at most, and with how many drafts.
_PAUSE, _MAX_PAUSE = 32, 1024
_PROBE = 4
# A backlog of up to so many tokens is prefilled together with drafting. A longer one is prefilled in chunks, one per
# step of the main model, each taking about as long as that step.
_SMALL_BACKLOG = 32
_MIN_PREFILL_CHUNK, _MAX_PREFILL_S = 64, 0.25
# Consecutive sequences in which it fails before it is disabled.
_MAX_FAILURES = 3


class DraftRunner:
    """The draft model, shared by all sequences.

    Args:
        runner: Used between the steps of the main model, on the same thread, and not closed.
        vocab_size: The main model's; token ids from here on are not drafted, since it has no logits for them.
        draft_max: Maximum draft tokens per step.

    Attributes:
        acceptance: Acceptance rate over all sequences: the prior of a new one.
    """

    def __init__(self, runner: Runner, *, vocab_size: int, draft_max: int = DRAFT_MAX) -> None:
        self.draft_max = draft_max
        self.acceptance = AcceptanceRate(_PRIOR)
        self._runner = runner
        self._vocab_size = vocab_size
        slots = runner.limits.sequence_slots
        self._free = list(range(slots))
        # Released slots that the runner failed to empty.
        self._stuck: list[int] = []
        # Maximum tokens of each slot since it was last emptied: its memory.
        self._high_water = [0] * slots
        self._cost = StepCost()
        self._measured = False
        self._prefill_tokens_per_s = 0.0
        self._may_prefill = True
        self._failures = 0

    @property
    def limits(self) -> Limits:
        """Its runner's limits."""
        return self._runner.limits

    @property
    def disabled(self) -> bool:
        """Whether it has failed so often that it is no longer used."""
        return self._failures >= _MAX_FAILURES

    @property
    def kv_bytes(self) -> int:
        """KV cache in its slots; may be read from any thread."""
        return sum(self._high_water) * self._runner.limits.kv_bytes_per_token

    @property
    def token_s(self) -> float:
        """Seconds per draft token; 0 until measured."""
        return self._cost(1) if self._measured else 0.0

    def begin_step(self) -> None:
        """Allow one prefill chunk before the main model's next step."""
        self._may_prefill = True

    def prefill_chunk_size(self, backlog: int, seconds: float) -> int:
        """Return how many tokens of a backlog to prefill now, in about so many seconds; 0 to leave it to the others."""
        if backlog <= _SMALL_BACKLOG:
            return backlog
        if not self._may_prefill:
            return 0
        self._may_prefill = False
        size = int(min(seconds, _MAX_PREFILL_S) * self._prefill_tokens_per_s)
        return min(backlog, max(_MIN_PREFILL_CHUNK, size))

    def acquire_slot(self) -> int | None:
        """Return an empty slot; None if all are in use."""
        if not self._free:
            self._empty_stuck()
        return self._free.pop() if self._free else None

    def release_slot(self, slot: int) -> None:
        """Empty a slot and free it."""
        self._stuck.append(slot)
        self._empty_stuck()

    def reset(self) -> None:
        """Empty and free all slots."""
        self._free, self._stuck = [], list(range(len(self._high_water)))
        self._empty_stuck()

    def truncate(self, slot: int, length: int) -> None:
        """Drop a slot's tokens from `length` on."""
        self._runner.truncate(slot, length)

    def prefill(self, slot: int, tokens: Sequence[int]) -> None:
        """Append tokens to a slot."""
        size = self._runner.limits.max_chunk
        for start in range(0, len(tokens), size):
            self._run(Chunk(slot, tokens[start : start + size], logits="none"))

    def next_token(self, slot: int, tokens: Sequence[int]) -> int:
        """Append tokens, at least one, and return the most likely next token."""
        size = self._runner.limits.max_chunk
        last = (len(tokens) - 1) // size * size
        self.prefill(slot, tokens[:last])
        logits = self._run(Chunk(slot, tokens[last:], logits="last"))
        return int(logits[-1, : self._vocab_size].argmax())

    def succeeded(self) -> None:
        """Record that tokens were drafted."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Record a failure in one sequence; after several in a row it is disabled."""
        self._failures += 1
        logger.warning("the draft model failed and is not used for the rest of this answer: %s", first_line(error))
        if self.disabled:
            logger.error("the draft model has failed %d answers in a row and is not used any more", self._failures)

    def _run(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        slot, count = chunk.slot, len(chunk.tokens)
        started = time.perf_counter()
        (logits,) = self._runner.run([chunk])
        seconds = time.perf_counter() - started
        self._high_water[slot] = max(self._high_water[slot], self._runner.length(slot))
        self._cost.observe(count, seconds)
        self._measured = True
        if count > _SMALL_BACKLOG and seconds > 0:
            rate, known = count / seconds, self._prefill_tokens_per_s
            self._prefill_tokens_per_s += 0.3 * (rate - known) if known else rate
        return logits

    def _empty_stuck(self) -> None:
        self._stuck = [slot for slot in self._stuck if not self._empty(slot)]

    def _empty(self, slot: int) -> bool:
        try:
            self._runner.truncate(slot, 0)
        except Exception as error:  # noqa: BLE001  retried when a slot is needed
            logger.warning("sequence slot %d of the draft model cannot be emptied: %s", slot, first_line(error))
            return False
        self._free.append(slot)
        self._high_water[slot] = 0
        return True


class DraftModel:
    """Drafts greedily with the draft model, for one sequence.

    Its sequence slot follows the sequence: rejected tokens are truncated, new tokens are prefilled. While drafting does
    not pay off it pauses, longer each time, and catches up when it is tried again.

    Args:
        runner: Shared with the other sequences.
        cost: Seconds of a main-model step that verifies so many draft tokens: `StepTimes.verify_cost`.
    """

    def __init__(self, runner: DraftRunner, *, cost: Callable[[int], float]) -> None:
        self._runner = runner
        self._cost = cost
        self._acceptance = AcceptanceRate(runner.acceptance.value)
        self._slot: int | None = None
        # The slot's tokens; the first `_verified` of them are the sequence's, the rest was drafted.
        self._tokens: list[int] = []
        self._verified = 0
        self._pause = _PAUSE
        self._retry_at: int | None = None
        self._failed = False

    def draft(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Return draft tokens; none if drafting does not pay off, or it failed or is still prefilling."""
        length = self._draft_length(len(tokens), self._max_drafts(len(tokens), limit))
        if not length:
            return []
        try:
            if self._slot is None:
                self._slot = self._runner.acquire_slot()
            drafted = [] if self._slot is None else self._run(self._slot, tokens, length)
        except Exception as error:  # noqa: BLE001  the output does not depend on it
            self._runner.failed(error)
            self._failed = True
            self.release()
            return []
        if drafted:
            self._runner.succeeded()
        return drafted

    def speedup(self, size: int, limit: int) -> float:
        """Return the expected speedup of its next draft; 1 if none pays off or is possible.

        Args:
            size: Tokens of the sequence.
            limit: As for `draft`.
        """
        return self._best(self._max_drafts(size, limit))[1]

    def learn(self, drafted: int, accepted: int) -> None:
        """Record how many of the verified draft tokens were accepted."""
        for rate in (self._acceptance, self._runner.acceptance):
            rate.learn(min(accepted + 1, drafted), accepted)

    def release(self) -> None:
        """Release the sequence slot; another one is acquired if the sequence goes on."""
        self._tokens, self._verified = [], 0
        slot, self._slot = self._slot, None
        if slot is not None:
            self._runner.release_slot(slot)

    def _max_drafts(self, size: int, limit: int) -> int:
        """How many tokens could be drafted."""
        if self._failed or self._runner.disabled or not size:
            return 0
        return max(0, min(limit, self._runner.draft_max, self._runner.limits.context_length - size))

    def _best(self, limit: int) -> tuple[int, float]:
        token_s = self._runner.token_s
        return best_draft_length([self._acceptance.value] * limit, lambda count: self._cost(count) + count * token_s)

    def _draft_length(self, size: int, limit: int) -> int:
        length, _ = self._best(limit)
        if length:
            self._pause = _PAUSE
            self._retry_at = size + _PAUSE
        elif self._retry_at is None:
            # It has not paid off in other sequences.
            self._retry_at = size + _PAUSE
        elif limit and size >= self._retry_at:
            self._pause = min(2 * self._pause, _MAX_PAUSE)
            self._retry_at = size + self._pause
            length = min(_PROBE, limit)
        return length

    def _run(self, slot: int, tokens: Sequence[int], length: int) -> list[int]:
        runner = self._runner
        start = self._common_prefix(tokens)
        if start < len(self._tokens):
            runner.truncate(slot, start)
            del self._tokens[start:]
        backlog = len(tokens) - start
        count = runner.prefill_chunk_size(backlog, self._cost(0))
        new = tokens[start : start + count]
        drafted = []
        if count < backlog:
            runner.prefill(slot, new)
        else:
            drafted.append(runner.next_token(slot, new))
            while len(drafted) < length:
                drafted.append(runner.next_token(slot, drafted[-1:]))
        self._tokens += [*new, *drafted[:-1]]
        self._verified = start + count
        return drafted

    def _common_prefix(self, tokens: Sequence[int]) -> int:
        """How many of the slot's tokens can stay; the sequence's last one never, since it gives the logits."""
        limit = min(len(self._tokens), len(tokens) - 1)
        # If the sequence is shorter than before, it is another one.
        length = min(self._verified, limit) if self._verified <= len(tokens) else 0
        while length < limit and self._tokens[length] == tokens[length]:
            length += 1
        return length
