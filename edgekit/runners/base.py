"""The seam between what generates text and what runs a model.

A runner owns numbered sequence slots, each with its own KV cache. Sampling, grammar, batching policy and
the prefix cache live above it, once, for all backends. A runner is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Backend", "Chunk", "Limits", "Runner", "first_line"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loaded runner can do.

    Attributes:
        context_length: Tokens one sequence slot holds.
        sequence_slots: Slots, numbered from 0.
        max_chunk: Most tokens of one slot in one `run`: the prefill step.
        vocab_size: Width of a row of logits.
        kv_bytes_per_token: KV cache bytes of one token in one slot.
        exact: Every chunk is computed as if it were asked to be exact; it costs nothing here.
    """

    context_length: int
    sequence_slots: int
    max_chunk: int
    vocab_size: int
    kv_bytes_per_token: int
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """What computes. Another one computes other last bits of the same model.

    Attributes:
        runtime: As targets and the memory plan call it: `cpu`, `onnxruntime`, `mlx`.
        variant: Of its kernels, where edgekit chooses them; else empty.
        digest: SHA-256 of their library; empty where the version of a package says which they are.
    """

    runtime: str
    variant: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.runtime} ({self.variant})" if self.variant else self.runtime


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to append to one sequence slot.

    Attributes:
        slot: The sequence slot.
        tokens: At least one, at most `Limits.max_chunk`.
        logits: For which of them logits are wanted.
        exact: Logits and KV cache must be the same, bit by bit, however the sequence is cut into chunks and whatever
            else is in the step. It may cost time; without it the runner takes its fastest way.
    """

    slot: int
    tokens: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    exact: bool = False


class Runner(Protocol):
    """A model loaded and ready."""

    @property
    def backend(self) -> Backend:
        """What computes."""

    @property
    def limits(self) -> Limits:
        """What this runner can do."""

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Append each chunk to its slot in one step.

        Args:
            chunks: At most one per slot.

        Returns:
            For each chunk float32 logits `[n, vocab]`, n being 0, 1 or the number of tokens. The arrays
            may be overwritten by the next `run`: copy what must stay.

        Raises:
            RunnerError: A slot would exceed the context length (its cache is then unchanged), or the backend failed.
        """

    def length(self, slot: int) -> int:
        """Tokens the slot holds."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on; `truncate(slot, 0)` gives the slot's memory back to the system.

        Raises:
            RunnerError: The slot holds fewer tokens.
        """

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions `start:stop`, in a layout of the runner's own.

        Only `write_kv` of the same runner on the same bundle understands it.
        """

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        """Put back what `read_kv` gave, at position `start` (the slot's length), and return the new length.

        Raises:
            RunnerError: The data does not fit this runner or this position.
        """

    def close(self) -> None:
        """Release the model."""


def first_line(error: BaseException) -> str:
    """Return what a backend's exception says, cut to a line: they print whole stacks."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
