"""A smaller model of the same tokenizer that guesses what the larger one will say, for all answers of an engine.

`DraftRunner` is what the answers share: the smaller model's runner, whose sequence slot is whose, what its steps take
and how often it is right. `DraftModel` guesses for one answer. Whatever goes wrong here costs speed and nothing else:
no exception leaves this file. It knows no sampling, no grammar and no text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.generation.chance import Chance
from edgekit.generation.step_cost import StepCost, best_length
from edgekit.runners.base import Chunk, Limits, Runner, first_line

__all__ = ["MOST", "DraftModel", "DraftRunner"]

logger = logging.getLogger(__name__)

MOST = 8
"""Tokens that are drafted at most, unless said otherwise."""

# Chance that a guess is right, before anything is known: a model of the same family.
_PRIOR = 0.7
# Tokens after which a draft model that does not pay is tried again: at first, and at most.
_PAUSE, _LONGEST_PAUSE = 32, 1024
_PROBE = 4
# So many tokens that it has not read are read by the way. More of them are read in pieces, each for about as long as
# a step of the larger model takes, one piece in each of its steps.
_BY_THE_WAY = 32
_LEAST_PIECE, _LONGEST_PIECE_S = 64, 0.25
# Answers in a row in which it fails, and then it is left alone.
_MOST_FAILURES = 3


class DraftRunner:
    """The smaller model, as the answers share it.

    Args:
        runner: It is used in between the steps of the larger one, on the same thread, and not closed.
        vocab_size: Ids from here on are not drafted: the larger model has no such logits.
        most: How many tokens to draft at most.

    Attributes:
        chance: How often its guesses came true, in all answers: where a new one begins.
    """

    def __init__(self, runner: Runner, *, vocab_size: int, most: int = MOST) -> None:
        self.most = most
        self.chance = Chance(_PRIOR)
        self._runner = runner
        self._vocab_size = vocab_size
        slots = runner.limits.sequence_slots
        self._free = list(range(slots))
        # Slots that were given back and that the runner would not empty.
        self._stuck: list[int] = []
        # Most tokens each held since it was last emptied: its memory.
        self._high = [0] * slots
        self._cost = StepCost()
        self._measured = False
        self._tokens_per_s = 0.0
        self._reads = True
        self._failures = 0

    @property
    def limits(self) -> Limits:
        """Of its runner."""
        return self._runner.limits

    @property
    def given_up(self) -> bool:
        """Whether it has failed so often that it is not used any more."""
        return self._failures >= _MOST_FAILURES

    @property
    def kv_bytes(self) -> int:
        """KV cache in its slots; may be read from any thread."""
        return sum(self._high) * self._runner.limits.kv_bytes_per_token

    @property
    def token_s(self) -> float:
        """Seconds that a token takes; 0 until one was measured."""
        return self._cost(1) if self._measured else 0.0

    def begin_step(self) -> None:
        """The larger model takes a step: one answer may have a piece of what it has not read, read before it."""
        self._reads = True

    def piece(self, behind: int, seconds: float) -> int:
        """How many of so many tokens to read now, so that it takes about so long; 0 to let another answer go first."""
        if behind <= _BY_THE_WAY:
            return behind
        if not self._reads:
            return 0
        self._reads = False
        return min(behind, max(_LEAST_PIECE, int(min(seconds, _LONGEST_PIECE_S) * self._tokens_per_s)))

    def take(self) -> int | None:
        """Give an answer an empty slot; None if there is none."""
        if not self._free:
            self._empty_stuck()
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Take a slot back, and its memory."""
        self._stuck.append(slot)
        self._empty_stuck()

    def reset(self) -> None:
        """Take all slots back, whoever has them."""
        self._free, self._stuck = [], list(range(len(self._high)))
        self._empty_stuck()

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from `length` on."""
        self._runner.truncate(slot, length)

    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """Append tokens to a slot."""
        size = self._runner.limits.max_chunk
        for start in range(0, len(tokens), size):
            self._run(Chunk(slot, tokens[start : start + size], logits="none"))

    def next(self, slot: int, tokens: Sequence[int]) -> int:
        """Append tokens, at least one, and return the likeliest token after them."""
        size = self._runner.limits.max_chunk
        last = (len(tokens) - 1) // size * size
        self.read(slot, tokens[:last])
        logits = self._run(Chunk(slot, tokens[last:], logits="last"))
        return int(logits[-1, : self._vocab_size].argmax())

    def worked(self) -> None:
        """A guess was made."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """It failed an answer; after a few of them it is not used any more."""
        self._failures += 1
        logger.warning("the draft model failed and is not used for the rest of this answer: %s", first_line(error))
        if self.given_up:
            logger.error("the draft model has failed %d answers in a row and is not used any more", self._failures)

    def _run(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        slot, count = chunk.slot, len(chunk.tokens)
        started = time.perf_counter()
        (logits,) = self._runner.run([chunk])
        seconds = time.perf_counter() - started
        self._high[slot] = max(self._high[slot], self._runner.length(slot))
        self._cost.observe(count, seconds)
        self._measured = True
        if count > _BY_THE_WAY and seconds > 0:
            rate, known = count / seconds, self._tokens_per_s
            self._tokens_per_s += 0.3 * (rate - known) if known else rate
        return logits

    def _empty_stuck(self) -> None:
        self._stuck = [slot for slot in self._stuck if not self._empty(slot)]

    def _empty(self, slot: int) -> bool:
        try:
            self._runner.truncate(slot, 0)
        except Exception as error:  # noqa: BLE001  it is tried again when a slot is wanted
            logger.warning("sequence slot %d of the draft model cannot be emptied: %s", slot, first_line(error))
            return False
        self._free.append(slot)
        self._high[slot] = 0
        return True


class DraftModel:
    """Guesses for one answer what the smaller model would say, greedily.

    Its sequence slot follows the answer: what was rejected is truncated, what it has not seen is read. Where its steps
    cost more than they win it pauses, longer and longer, and catches up when it tries again.

    Args:
        runner: Shared with the other answers.
        cost: Seconds of a step of the larger model that verifies so many drafted tokens: `StepTimes.verifying`.
    """

    def __init__(self, runner: DraftRunner, *, cost: Callable[[int], float]) -> None:
        self._runner = runner
        self._cost = cost
        self._chance = Chance(runner.chance.value)
        self._slot: int | None = None
        # What the slot holds; the first `_sure` of it are the sequence's, the rest was drafted.
        self._held: list[int] = []
        self._sure = 0
        self._pause = _PAUSE
        self._again: int | None = None
        self._failed = False

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what the smaller model would say; empty where that does not pay, or it failed or has yet to read."""
        length = self._length(len(tokens), self._room(len(tokens), most))
        if not length:
            return []
        try:
            if self._slot is None:
                self._slot = self._runner.take()
            drafted = [] if self._slot is None else self._run(self._slot, tokens, length)
        except Exception as error:  # noqa: BLE001  the answer does not depend on it
            self._runner.failed(error)
            self._failed = True
            self.release()
            return []
        if drafted:
            self._runner.worked()
        return drafted

    def speedup(self, size: int, most: int) -> float:
        """How many times as fast tokens are expected to come with its next guess; 1 if it pays or can make none.

        Args:
            size: Tokens of the sequence.
            most: As for `draft`.
        """
        return self._best(self._room(size, most))[1]

    def learn(self, drafted: int, accepted: int) -> None:
        """Hear how many of the drafted tokens that were verified came true."""
        for chance in (self._chance, self._runner.chance):
            chance.learn(min(accepted + 1, drafted), accepted)

    def release(self) -> None:
        """Give the sequence slot back; another one is taken if the answer goes on."""
        self._held, self._sure = [], 0
        slot, self._slot = self._slot, None
        if slot is not None:
            self._runner.give_back(slot)

    def _room(self, size: int, most: int) -> int:
        """How many tokens can be drafted at all."""
        if self._failed or self._runner.given_up or not size:
            return 0
        return max(0, min(most, self._runner.most, self._runner.limits.context_length - size))

    def _best(self, most: int) -> tuple[int, float]:
        own = self._runner.token_s
        return best_length([self._chance.value] * most, lambda count: self._cost(count) + count * own)

    def _length(self, size: int, most: int) -> int:
        length, _ = self._best(most)
        if length:
            self._pause = _PAUSE
            self._again = size + _PAUSE
        elif self._again is None:
            # It did not pay for others before.
            self._again = size + _PAUSE
        elif most and size >= self._again:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._again = size + self._pause
            length = min(_PROBE, most)
        return length

    def _run(self, slot: int, tokens: Sequence[int], length: int) -> list[int]:
        runner = self._runner
        start = self._agreed(tokens)
        if start < len(self._held):
            runner.truncate(slot, start)
            del self._held[start:]
        behind = len(tokens) - start
        now = runner.piece(behind, self._cost(0))
        new = tokens[start : start + now]
        drafted = []
        if now < behind:
            runner.read(slot, new)
        else:
            drafted.append(runner.next(slot, new))
            while len(drafted) < length:
                drafted.append(runner.next(slot, drafted[-1:]))
        self._held += [*new, *drafted[:-1]]
        self._sure = start + now
        return drafted

    def _agreed(self, tokens: Sequence[int]) -> int:
        """How many tokens the slot holds already; never the last, which gives the logits."""
        most = min(len(self._held), len(tokens) - 1)
        # A sequence that is shorter than what it was is another one.
        agreed = min(self._sure, most) if self._sure <= len(tokens) else 0
        while agreed < most and self._held[agreed] == tokens[agreed]:
            agreed += 1
        return agreed
