"""Reads the GGUF container, versions 2 and 3: its key-value pairs and the location of each tensor.

Source: `docs/gguf.md` in the ggml repository. Every length and offset is checked against the file's size before
it is used, and nothing is allocated by a count that the rest of the file could not hold.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import BoundedFile
from edgekit.export.checkpoints.gguf.blocks import BLOCKS, encoding_name

__all__ = ["Container", "GgufTensor", "read_container"]

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# The shortest pair is a key's length, its type and one byte; the shortest tensor has no name and one dimension.
_MIN_PAIR, _MIN_TENSOR = 13, 32
_DEFAULT_ALIGNMENT = 32
_MAX_NAME = 1 << 16
_MAX_DIMENSIONS = 4
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor and its location.

    Attributes:
        name: GGUF's name: `blk.0.attn_q.weight`.
        shape: Slowest dimension first, the reverse of the file's order: `[out, in]`.
        encoding: A key of `BLOCKS` where edgekit reads it, else ggml's name or number.
        offset: In bytes from the start of the file.
        file: The file it is in.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    offset: int
    file: BoundedFile


@dataclass(frozen=True, slots=True)
class Container:
    """Everything before the tensor data.

    Attributes:
        metadata: Scalars as Python values, strings as `str`, arrays of strings as lists, others as numpy arrays.
        tensors: In the file's order.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_container(file: BoundedFile) -> Container:
    """Parse everything but the tensor data.

    Raises:
        ExportError: It is not GGUF, of another version, truncated, or inconsistent.
    """
    if file.size < 24:
        raise file.truncated("the GGUF header")
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(file, data).container()
    except (OSError, ValueError) as error:
        raise ExportError(f"{file.path} cannot be read: {error}") from error


class _Reader:
    """A cursor over the mapped file that never passes its end."""

    def __init__(self, file: BoundedFile, data: mmap.mmap) -> None:
        self._file = file
        self._data = data
        self._size = len(data)
        self._position = 0

    def container(self) -> Container:
        if self._take(4, "the magic number") != b"GGUF":
            raise ExportError(f"{self._file.name} is not a GGUF file")
        version = self._number("<u4", "the version")
        if version not in (2, 3):
            found = "big-endian GGUF" if version & 0xFFFF == 0 and version else f"GGUF version {version}"
            raise ExportError(f"{self._file.name} is {found}; edgekit reads versions 2 and 3, little-endian")
        tensor_count = self._count(_MIN_TENSOR, "the tensor list")
        pair_count = self._count(_MIN_PAIR, "the metadata")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._name("a metadata key")
            if key in metadata:
                raise self._damaged(f"metadata key `{key}` appears twice")
            metadata[key] = self._value(self._number("<u4", f"`{key}`"), key)
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        return Container(metadata, self._locate(entries, self._alignment(metadata)))

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment!r}, not a power of two")
        return alignment

    def _locate(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> tuple[GgufTensor, ...]:
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise self._damaged(f"tensor `{name}` appears twice")
            if offset % alignment:
                raise self._damaged(f"tensor `{name}` is not aligned to {alignment} bytes")
            encoding = encoding_name(kind)
            tensors[name] = GgufTensor(name, shape, encoding, start + offset, self._file)
            if start + offset + self._bytes(name, shape, encoding) > self._size:
                raise self._file.truncated(f"tensor `{name}`")
        return tuple(tensors.values())

    def _bytes(self, name: str, shape: tuple[int, ...], encoding: str) -> int:
        if encoding not in BLOCKS:  # of unknown size; reading it is refused by name
            return 0
        block = BLOCKS[encoding]
        if shape[-1] % block.length:
            raise self._damaged(
                f"tensor `{name}` has rows of {shape[-1]}, not a multiple of {encoding}'s {block.length}"
            )
        return prod(shape) // block.length * block.size

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor's name")
        what = f"the description of tensor `{name}`"
        dimensions = self._number("<u4", what)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor `{name}` has {dimensions} dimensions")
        shape = tuple(self._number("<u8", what) for _ in range(dimensions))[::-1]
        if not all(shape):
            raise self._damaged(f"tensor `{name}` has an empty dimension")
        return name, shape, self._number("<u4", what), self._number("<u8", what)

    def _value(self, kind: int, key: str) -> Any:
        what = f"the value of `{key}`"
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], what)
        if kind == _STRING:
            return self._string(self._number("<u8", what), what)
        if kind != _ARRAY:
            raise self._damaged(f"{what} is of the unknown type {kind}")
        element = self._number("<u4", what)
        if element == _STRING:
            return self._strings(self._count(8, what), what)
        if element not in _SCALARS:
            raise self._damaged(f"{what} is an array of type {element}")
        dtype = np.dtype(_SCALARS[element])
        count = self._count(dtype.itemsize, what)
        return np.frombuffer(self._take(count * dtype.itemsize, what), dtype="<u1" if dtype == np.bool_ else dtype)

    def _strings(self, count: int, what: str) -> list[str]:
        # A vocabulary has 150,000 of these: the loop works on locals.
        data, at, size, length_at = self._data, self._position, self._size, _LENGTH.unpack_from
        strings: list[str] = []
        append: Callable[[str], None] = strings.append
        try:
            for _ in range(count):
                (length,) = length_at(data, at)
                at += 8
                if length > size - at:
                    raise self._file.truncated(what)
                append(data[at : at + length].decode())
                at += length
        except struct.error as error:
            raise self._file.truncated(what) from error
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} holds text that is not UTF-8") from error
        self._position = at
        return strings

    def _count(self, min_size: int, what: str) -> int:
        """Read a count of items of at least `min_size` bytes each, which the rest of the file must hold."""
        count: int = self._number("<u8", what)
        if count * min_size > self._size - self._position:
            raise self._file.truncated(what)
        return count

    def _name(self, what: str) -> str:
        length = self._number("<u8", what)
        if length > _MAX_NAME:
            raise self._damaged(f"{what} is {length} bytes long")
        name = self._string(length, what)
        if not name.isprintable():  # names go into messages
            raise self._damaged(f"{what} is not printable")
        return name

    def _string(self, length: int, what: str) -> str:
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8 text") from error

    def _number(self, code: str, what: str) -> Any:
        dtype = np.dtype(code)
        data = self._take(dtype.itemsize, what)
        if dtype == np.bool_:
            return data != b"\0"
        return np.frombuffer(data, dtype)[0].item()

    def _take(self, length: int, what: str) -> bytes:
        if length > self._size - self._position:
            raise self._file.truncated(what)
        self._position += length
        return self._data[self._position - length : self._position]

    def _damaged(self, why: str) -> ExportError:
        return ExportError(f"{self._file.name} is damaged: {why}", hint="fetch it again")
