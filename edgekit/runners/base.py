"""The `Runner` protocol: the interface between generation and the backends.

A runner owns numbered sequence slots, each with its own KV cache. Sampling, grammars, batching policy and the prefix
cache are implemented above it, once for all backends. A runner may be used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.runners.buckets import KvPool

__all__ = ["Backend", "Chunk", "KvNeed", "KvShare", "Limits", "Runner"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a loaded runner.

    Attributes:
        context_length: Maximum tokens of one sequence slot.
        sequence_slots: Number of slots, numbered from 0.
        max_chunk: Maximum tokens of one slot in one `run`: the maximum prefill chunk.
        vocab_size: Width of a row of logits.
        kv_bytes_per_token: KV cache bytes of one token in one slot.
        exact: The runner computes every chunk as if `Chunk.exact` were set, at no extra cost.
        kv_pool: The slots share a pool of positions, in which a slot takes more than its tokens; None if each slot can
            be full, and takes only what it holds.
    """

    context_length: int
    sequence_slots: int
    max_chunk: int
    vocab_size: int
    kv_bytes_per_token: int
    exact: bool = False
    kv_pool: KvPool | None = None

    @property
    def kv_positions(self) -> int:
        """Positions of KV cache that all slots have together."""
        return self.sequence_slots * self.context_length if self.kv_pool is None else self.kv_pool.positions

    @property
    def kv_allocated(self) -> bool:
        """Whether the memory of all positions is taken already."""
        return self.kv_pool is not None and self.kv_pool.allocated

    def positions_of(self, tokens: int) -> int:
        """Return the positions of KV cache that a slot takes for so many tokens."""
        return tokens if self.kv_pool is None else self.kv_pool.taken(tokens)

    def tokens_in(self, positions: int) -> int:
        """Return the most tokens that a slot can hold in so many positions."""
        return positions if self.kv_pool is None else self.kv_pool.fitting(positions)


@dataclass(frozen=True, slots=True)
class KvNeed:
    """The KV cache that a runner is about to allocate.

    Attributes:
        position_bytes: Bytes of a position.
        capacity: Positions of a full slot.
        slots: Number of slots.
        on_card: It is in a memory of its own, not in the system's.
    """

    position_bytes: int
    capacity: int
    slots: int
    on_card: bool


KvShare = Callable[[int, KvNeed], int]
"""Takes the bytes of memory that are left, and returns how many of them the KV cache may have."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Identifies the code that computes. The last bits of results depend on it.

    Attributes:
        runtime: Name in targets and in the memory plan: `cpu`, `onnxruntime`, `mlx`.
        variant: Variant of the CPU kernels, empty for other runtimes.
        digest: SHA-256 of the kernels' library, empty where a package version identifies the code.
        rounds_activations: Inputs of matrix products, or the KV cache, are rounded to 8 bits.
    """

    runtime: str
    variant: str = ""
    digest: str = ""
    rounds_activations: bool = False

    def __str__(self) -> str:
        return f"{self.runtime} ({self.variant})" if self.variant else self.runtime


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to append to one sequence slot.

    Attributes:
        slot: The sequence slot.
        tokens: From 1 to `Limits.max_chunk` token ids.
        logits: Tokens for which to return logits.
        exact: Logits and KV cache must be bit-identical however the sequence is divided into chunks and whatever else
            is in the step (batch-invariant). This may cost time.
    """

    slot: int
    tokens: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    exact: bool = False


class Runner(Protocol):
    """A model loaded and ready."""

    @property
    def backend(self) -> Backend:
        """The code that computes."""

    @property
    def limits(self) -> Limits:
        """Limits of this runner."""

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Append each chunk to its slot in one step.

        Args:
            chunks: At most one per slot.

        Returns:
            For each chunk float32 logits `[n, vocab]`, where n is 0, 1 or the number of tokens. The next `run` may
            overwrite the arrays: copy what you keep.

        Raises:
            RunnerError: A slot would exceed the context length (no cache is changed), or the backend failed.
        """

    def length(self, slot: int) -> int:
        """Number of tokens in the slot."""

    def truncate(self, slot: int, length: int) -> None:
        """Discard positions from `length` on. `truncate(slot, 0)` returns the slot's memory to the system.

        Raises:
            RunnerError: The slot has fewer tokens.
        """

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """Return the KV cache of positions `start:stop`, in a layout private to this runner and bundle."""

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        """Append data from `read_kv` at position `start`, which must be the slot's length; return the new length.

        Raises:
            RunnerError: The data has the wrong size, or `start` is not the slot's length.
        """

    def close(self) -> None:
        """Release the model."""
