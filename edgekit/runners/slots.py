"""Base class of all runners: validates the arguments of every call before anything runs.

Subclasses implement the step and the KV cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError, first_line
from edgekit.runners.base import Backend, Chunk, Limits

__all__ = ["FloatArray", "SlotRunner", "TokenArray"]

FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.int64]


class SlotRunner(ABC):
    """A `Runner` that validates its arguments; see `Runner` for the contract of the public methods."""

    _backend: ClassVar[str]
    """Its name in error messages."""
    _runtime: ClassVar[str]
    """See `Backend.runtime`."""
    _rounds_activations: ClassVar[bool] = False
    """See `Backend.rounds_activations`."""
    _limits: Limits
    _closed = False

    @property
    def backend(self) -> Backend:
        """The code that computes."""
        return Backend(self._runtime, rounds_activations=self._rounds_activations)

    @property
    def limits(self) -> Limits:
        """Limits of this runner."""
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
        """Number of tokens in the slot."""
        return self._length(self._slot(slot))

    def truncate(self, slot: int, length: int) -> None:
        """Discard positions from `length` on; see `Runner.truncate`."""
        current = self.length(slot)
        if not 0 <= length <= current:
            raise RunnerError(f"slot {slot} holds {current} tokens; it cannot be truncated to {length}")
        self._truncate(slot, length)

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """Return the KV cache of positions `start:stop`; see `Runner.read_kv`."""
        length = self.length(slot)
        if not 0 <= start <= stop <= length:
            raise RunnerError(f"slot {slot} holds {length} tokens, not positions {start} to {stop}")
        return self._read(slot, start, stop)

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        """Append data from `read_kv`; see `Runner.write_kv`."""
        length, data = self.length(slot), memoryview(data)
        if start != length:
            raise RunnerError(f"slot {slot} holds {length} tokens; position {start} does not follow them")
        count, rest = divmod(data.nbytes, self._limits.kv_bytes_per_token)
        if rest or start + count > self._limits.context_length:
            raise RunnerError(f"{data.nbytes} bytes do not fit this runner's KV cache at position {start}")
        if count:
            self._write(slot, count, data)
        return start + count

    @abstractmethod
    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        """Run validated chunks, and return the logits of each."""

    @abstractmethod
    def _length(self, slot: int) -> int:
        """Number of tokens in a valid slot."""

    @abstractmethod
    def _truncate(self, slot: int, length: int) -> None:
        """Discard a slot's positions from `length` on."""

    @abstractmethod
    def _read(self, slot: int, start: int, stop: int) -> bytes:
        """Return the KV cache of valid positions."""

    @abstractmethod
    def _write(self, slot: int, count: int, data: memoryview) -> None:
        """Append the KV cache of `count` positions, at least one."""

    @abstractmethod
    def _snapshot(self) -> Any:
        """Capture the lengths of all slots."""

    @abstractmethod
    def _restore(self, before: Any, chunks: Sequence[Chunk]) -> None:
        """Restore a snapshot after a step with these chunks failed."""

    def _slot(self, slot: int) -> int:
        if self._closed:
            raise RunnerError("the runner is closed")
        if not 0 <= slot < self._limits.sequence_slots:
            raise RunnerError(f"no sequence slot {slot}: the runner has {self._limits.sequence_slots}")
        return slot

    def _check(self, chunk: Chunk) -> TokenArray:
        """Validate a chunk and return its tokens."""
        length, limits = self.length(chunk.slot), self._limits
        tokens = np.asarray(chunk.tokens, np.int64)
        if not 1 <= tokens.size <= limits.max_chunk:
            raise RunnerError(f"a chunk must have 1 to {limits.max_chunk} tokens, not {tokens.size}")
        if length + tokens.size > limits.context_length:
            raise RunnerError(
                f"{length} + {tokens.size} tokens do not fit the context of {limits.context_length}",
                code="context_length_exceeded",
            )
        # Otherwise a backend would read outside the embedding.
        if int(tokens.min()) < 0 or int(tokens.max()) >= limits.vocab_size:
            raise RunnerError(f"token ids must be from 0 to {limits.vocab_size - 1}")
        return tokens
