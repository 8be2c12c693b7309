"""A runner whose KV cache identifies its tokens: each row is a hash of its token and all tokens before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk, Limits

__all__ = ["ROW_BYTES", "RowRunner", "rows"]

ROW_BYTES = 64


def rows(tokens: Sequence[int]) -> bytes:
    """The KV cache of a sequence."""
    row, found = b"", []
    for token in tokens:
        row = hashlib.blake2b(row + token.to_bytes(4, "little")).digest()
        found.append(row)
    return b"".join(found)


class RowRunner:
    """A runner with one slot; `kv` is its KV cache."""

    def __init__(self, context_length: int = 256) -> None:
        self.backend = Backend("none")
        self.limits = Limits(context_length, 1, context_length, 16, ROW_BYTES)
        self.kv = b""
        self.reads = 0

    def fill(self, tokens: Sequence[int]) -> RowRunner:
        self.kv = rows(tokens)
        return self

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        raise NotImplementedError

    def length(self, slot: int) -> int:
        assert slot == 0
        return len(self.kv) // ROW_BYTES

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.length(slot)
        self.kv = self.kv[: length * ROW_BYTES]

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= self.length(slot)
        self.reads += 1
        return self.kv[start * ROW_BYTES : stop * ROW_BYTES]

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        assert start == self.length(slot)
        if len(data) % ROW_BYTES or start + len(data) // ROW_BYTES > self.limits.context_length:
            raise RunnerError("does not fit")
        self.kv += data
        return self.length(slot)

    def close(self) -> None:
        self.kv = b""
