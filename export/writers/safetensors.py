"""Writes safetensors shards as a stream: tensors are appended one at a time.

A safetensors file starts with a header that lists every tensor, which is complete only at the end. The header may be
padded with spaces, so space for the largest possible header is reserved at the front and filled when the shard is
closed; nothing is copied.

Source: the format section of huggingface/safetensors' README; the index is transformers' and mlx-lm's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ExportError
from edgekit.export.io.block_cache import sha256_of
from edgekit.export.writers.streamed import CACHED, StreamedFile

__all__ = ["INDEX", "ShardWriter"]

INDEX = "model.safetensors.index.json"
_DTYPES = {"U32": 4, "F16": 2, "F32": 4}
# `"name":{"dtype":"F16","shape":[…],"data_offsets":[…]},` with four 20-digit numbers, without the name.
_ENTRY = 140


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@final
class ShardWriter:
    """Appends tensors to `model.safetensors`, or to numbered shards if one would grow too large.

    Use it as a context manager; leaving it without `finish` removes the shards written so far.

    Args:
        folder: The folder for the shards.
        names: All names that may be written; they bound the header's size.
        max_shard_bytes: Maximum size of a shard, unless a single tensor is larger.
    """

    def __init__(self, folder: Path, names: Iterable[str], max_shard_bytes: int) -> None:
        self._folder = folder
        self._header_size = sum(_name_bytes(name) + _ENTRY for name in names) + 64
        self._header_size += -self._header_size % 8
        self._max = max_shard_bytes
        self._shards: list[tuple[Path, dict[str, _Entry]]] = []
        self._hashing: list[Future[str]] = []
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._file: StreamedFile | None = None
        self._entries: dict[str, _Entry] = {}
        self._written = 0
        self._bytes_before = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            self._file = None
            self._hasher.shutdown(cancel_futures=True)
            for path, _ in self._shards:
                path.unlink(missing_ok=True)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: Iterator[npt.NDArray[np.generic]]) -> None:
        """Append one tensor.

        Args:
            name: One of the announced names; each may be added once.
            dtype: `U32`, `F16` or `F32`.
            shape: Its shape.
            data: Its elements in row-major order, in any number of contiguous little-endian parts.
        """
        size = _DTYPES[dtype] * int(np.prod(shape, dtype=np.int64))
        if self._file is None or (self._entries and self._written + size > self._max):
            self._open_shard()
        file = self._file
        assert file is not None  # noqa: S101  for the type checker
        start = self._written
        for part in data:
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            self._written += part.nbytes
        if self._written - start != size:
            raise ExportError(f"`{name}`: wrote {self._written - start} bytes instead of {size}")
        self._entries[name] = _Entry(dtype, shape, start, self._written)

    def finish(self, parameters: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """Close the last shard, rename all to their final names and write the index.

        Args:
            parameters: The model's number of parameters, for the index.

        Returns:
            File names, the shards first and the index last; and the shards' SHA-256.
        """
        self._close_shard()
        hashes = [hashing.result() for hashing in self._hashing]
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        files = []
        total = 0
        for number, (path, entries) in enumerate(self._shards, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / name)
            files.append(name)
            weight_map.update(dict.fromkeys(entries, name))
            total += sum(entry.stop - entry.start for entry in entries.values())
        self._shards = []
        index = {
            "metadata": {"total_size": total, "total_parameters": parameters},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return (*files, INDEX), dict(zip(files, hashes, strict=True))

    def _open_shard(self) -> None:
        self._close_shard()
        path = self._folder / f".shard-{len(self._shards) + 1:05d}.partial"
        self._entries = {}
        self._shards.append((path, self._entries))
        # The header at the start is written last, when it is complete.
        self._file = StreamedFile(path, before=self._bytes_before, hashed=False)
        self._file.write(bytes(8 + self._header_size))
        self._written = 0

    def _close_shard(self) -> None:
        if self._file is None:
            return
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        for name, entry in self._entries.items():
            header[name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.start, entry.stop],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self._header_size:
            raise ExportError("a safetensors header outgrew its reserved space: an unannounced name was written")
        self._file.flush()
        self._file.replace(self._header_size.to_bytes(8, "little") + text.ljust(self._header_size), 0)
        self._bytes_before += self._file.tell()
        self._file.close()
        self._file = None
        self._hashing.append(self._hasher.submit(_hash, self._shards[-1][0], self._bytes_before > CACHED))


def _hash(path: Path, large: bool) -> str:
    return sha256_of(path) if large else hash_file(path)[1]


def _name_bytes(name: str) -> int:
    return len(json.dumps(name))
