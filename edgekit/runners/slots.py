"""What all runners refuse, before anything is run: the numbered sequence slots and what they may be asked.

It knows no backend. A runner fills in how a step is taken and where the KV cache lies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk, Limits, first_line

__all__ = ["FloatArray", "SlotRunner", "TokenArray"]

FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.int64]


class SlotRunner(ABC):
    """A `Runner` whose callers are checked here; see `Runner` for what the public methods promise."""

    _backend: ClassVar[str]
    """What errors call it."""
    _runtime: ClassVar[str]
    """See `Backend.runtime`."""
    _limits: Limits
    _closed = False

    @property
    def backend(self) -> Backend:
        """What computes."""
        return Backend(self._runtime)

    @property
    def limits(self) -> Limits:
        """What this runner can do."""
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        """Append each chunk to its slot in one step; see `Runner.run`."""
        tokens = [self._check(chunk) for chunk in chunks]
        if len({chunk.slot for chunk in chunks}) != len(chunks):
            raise RunnerError("a step takes at most one chunk per sequence slot")
        before = self._snapshot()
        try:
            return self._step(chunks, tokens)
        except Exception as error:  # backends' exceptions share no base class
            self._restore(before, chunks)
            raise RunnerError(f"{self._backend} failed: {first_line(error)}") from error

    def length(self, slot: int) -> int:
        """Tokens the slot holds."""
        return self._held(self._slot(slot))

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on; see `Runner.truncate`."""
        held = self.length(slot)
        if not 0 <= length <= held:
            raise RunnerError(f"slot {slot} holds {held} tokens; it cannot be cut to {length}")
        self._cut(slot, length)

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions `start:stop`; see `Runner.read_kv`."""
        held = self.length(slot)
        if not 0 <= start <= stop <= held:
            raise RunnerError(f"slot {slot} holds {held} tokens, not positions {start} to {stop}")
        return self._read(slot, start, stop)

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        """Put back what `read_kv` gave; see `Runner.write_kv`."""
        held, data = self.length(slot), memoryview(data)
        if start != held:
            raise RunnerError(f"slot {slot} holds {held} tokens; position {start} does not follow them")
        count, rest = divmod(data.nbytes, self._limits.kv_bytes_per_token)
        if rest or start + count > self._limits.context_length:
            raise RunnerError(f"{data.nbytes} bytes are not KV cache that fits this runner at position {start}")
        if count:
            self._write(slot, count, data)
        return start + count

    @abstractmethod
    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        """Run chunks that have been checked, and give each one's logits."""

    @abstractmethod
    def _held(self, slot: int) -> int:
        """Tokens that a slot, which there is, holds."""

    @abstractmethod
    def _cut(self, slot: int, length: int) -> None:
        """Forget a slot's positions from `length` on."""

    @abstractmethod
    def _read(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions that the slot holds."""

    @abstractmethod
    def _write(self, slot: int, count: int, data: memoryview) -> None:
        """Append the KV cache of `count` positions, at least one."""

    @abstractmethod
    def _snapshot(self) -> Any:
        """What says how much each slot holds."""

    @abstractmethod
    def _restore(self, before: Any, chunks: Sequence[Chunk]) -> None:
        """Go back to a snapshot, after a step of these chunks that failed."""

    def _slot(self, slot: int) -> int:
        if self._closed:
            raise RunnerError("the runner is closed")
        if not 0 <= slot < self._limits.sequence_slots:
            raise RunnerError(f"there is no sequence slot {slot}; there are {self._limits.sequence_slots}")
        return slot

    def _check(self, chunk: Chunk) -> TokenArray:
        """Refuse what would harm a cache."""
        held, limits = self.length(chunk.slot), self._limits
        tokens = np.asarray(chunk.tokens, np.int64)
        if not 1 <= tokens.size <= limits.max_chunk:
            raise RunnerError(f"a chunk has 1 to {limits.max_chunk} tokens, not {tokens.size}")
        if held + tokens.size > limits.context_length:
            raise RunnerError(
                f"{held} + {tokens.size} tokens do not fit the context of {limits.context_length}",
                code="context_length_exceeded",
            )
        # A backend would read outside the embedding.
        if int(tokens.min()) < 0 or int(tokens.max()) >= limits.vocab_size:
            raise RunnerError(f"token ids run from 0 to {limits.vocab_size - 1}")
        return tokens
