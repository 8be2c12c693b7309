"""Safetensors: one file, or several with or without an index; read with every number checked.

Source of the format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the data).
It knows no model: names and shapes are passed on as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.block_cache import BlockCache
from edgekit.export.checkpoints.base import FloatArray, TensorInfo, row_range
from edgekit.export.checkpoints.files import DOWNLOAD_AGAIN, BoundedFile, read_json, share_blocks
from edgekit.export.checkpoints.floats import FLOATS, widen

__all__ = ["INDEX", "Shards", "shard_names"]

INDEX = "model.safetensors.index.json"
_MAX_HEADER = 1 << 25
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class _Placed:
    info: TensorInfo
    file: BoundedFile
    offset: int
    size: int


class Shards:
    """The tensors of a checkpoint folder.

    Args:
        folder: It holds `model.safetensors`, or several files with or without `model.safetensors.index.json`.

    Raises:
        ExportError: There is none, one is missing, truncated or damaged, or an index names what is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._files: list[BoundedFile] = []
        self._placed: dict[str, _Placed] = {}
        self._blocks: BlockCache | None = None
        try:
            self._open(folder)
            self._blocks = share_blocks(self._files)
        except BaseException:
            self.close()
            raise
        self.infos = {name: placed.info for name, placed in self._placed.items()}

    @property
    def files(self) -> tuple[BoundedFile, ...]:
        """The files, sorted by name; they stay this object's to close."""
        return tuple(self._files)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Read one tensor, or some of its rows, as float32, whatever its float type.

        Raises:
            ExportError: There is none of that name, it has not so many rows, it is no float, or its bytes cannot
                be read.
        """
        placed = self._find(name, FLOATS)
        encoding, shape = placed.info.encoding, placed.info.shape
        start, stop = row_range(placed.info, start, stop)
        values = np.empty((stop - start, *shape[1:]) if shape else (), dtype=np.float32)
        at = placed.offset + start * prod(shape[1:]) * _SIZES[encoding]
        _read_floats(placed.file, at, encoding, values.reshape(-1), f"tensor `{name}`")
        return values

    def read_columns(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the columns `start:stop` of a matrix: floats as float32, I32 as int32.

        Returns:
            `[rows, stop - start]`, contiguous.

        Raises:
            ExportError: There is no such matrix, or its bytes cannot be read.
        """
        placed = self._find(name, (*FLOATS, "I32"))
        rows, columns = placed.info.shape
        encoding, width = placed.info.encoding, _SIZES[placed.info.encoding]
        stored = np.empty((rows, (stop - start) * width), dtype=np.uint8)
        placed.file.read_columns(stored, placed.offset + start * width, columns * width, f"tensor `{name}`")
        if encoding == "I32":
            return stored.view("<i4")
        values = np.empty((rows, stop - start), dtype=np.float32)
        widen(stored.reshape(-1), encoding, values.reshape(-1))
        return values

    def read_integers(self, name: str) -> npt.NDArray[np.int32]:
        """Read a tensor of type I32.

        Raises:
            ExportError: There is no such tensor, or its bytes cannot be read.
        """
        placed = self._find(name, ("I32",))
        values = np.empty(placed.info.shape, dtype=np.int32)
        placed.file.read_into(values, placed.offset, f"tensor `{name}`")
        return values

    def close(self) -> None:
        """Close the files."""
        if self._blocks is not None:
            self._blocks.close()
        for file in self._files:
            file.close()

    def _find(self, name: str, encodings: tuple[str, ...]) -> _Placed:
        placed = self._placed.get(name)
        if placed is None:
            raise ExportError(f"the checkpoint has no tensor `{name}`")
        if placed.info.encoding not in encodings:
            raise ExportError(
                f"tensor `{name}` of {placed.file.name} is stored as {placed.info.encoding}, "
                "which edgekit does not read",
                hint=f"it reads {', '.join(sorted(encodings))}",
                code="unsupported_encoding",
            )
        return placed

    def _open(self, folder: Path) -> None:
        index = _read_index(folder)
        for file_name in sorted(set(index.values())) if index else shard_names(folder):
            if index and not (folder / file_name).exists():
                raise ExportError(f"{folder / file_name} is missing, which {INDEX} names", hint=DOWNLOAD_AGAIN)
            file = BoundedFile(folder / file_name)
            self._files.append(file)
            for placed in _read_header(file):
                name = placed.info.name
                if index and index.get(name) != file_name:
                    continue
                if name in self._placed:
                    raise ExportError(f"tensor `{name}` is in {self._placed[name].file.name} and in {file_name}")
                self._placed[name] = placed
        missing = next((name for name in index if name not in self._placed), None)
        if missing is not None:
            raise ExportError(f"tensor `{missing}` is not in {index[missing]}, where {INDEX} says it is")

    def read_words(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Read some rows of a matrix of 32-bit words (U32), in which MLX packs its codes.

        Raises:
            ExportError: There is no such matrix, or it has not so many rows.
        """
        placed = self._placed.get(name)
        if placed is None or placed.info.encoding != "U32":
            raise ExportError(f"there are no packed codes `{name}`")
        row_range(placed.info, start, stop)
        words = np.empty((stop - start, *placed.info.shape[1:]), dtype="<u4")
        placed.file.read_into(words, placed.offset + start * prod(placed.info.shape[1:]) * 4, f"tensor `{name}`")
        return words


def _read_floats(file: BoundedFile, offset: int, encoding: str, values: FloatArray, what: str) -> None:
    """Fill `values` from a file; what is float32 already goes where it belongs at once."""
    if encoding == "F32":
        file.read_into(values, offset, what)
        return
    width = _SIZES[encoding]
    if offset % width:
        # A number lies across two parts.
        widen(file.read(offset, values.size * width, what), encoding, values)
        return
    first = 0
    for part in file.parts(offset, values.size * width, what):
        out = values[first : first + part.size // width]
        widen(part, encoding, out)
        first += out.size


def shard_names(folder: Path) -> list[str]:
    """The safetensors files that make up a folder's model, where no index says so.

    Raises:
        ExportError: There is none, or one of a numbered series is missing.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in names:
        return ["model.safetensors"]
    series = [match for name in names if (match := _NUMBERED.fullmatch(name)) and match["stem"] == "model"]
    for match in series:
        for number in range(1, int(match["count"]) + 1):
            name = f"model-{number:05}-of-{match['count']}.safetensors"
            if name not in names:
                raise ExportError(f"{folder / name} is missing", hint=DOWNLOAD_AGAIN)
    names = [match.string for match in series] or names
    if names:
        return names
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
    raise ExportError(
        f"{folder} has no safetensors file",
        hint="pickled weights are not read, as they can run code: convert them to safetensors"
        if pickled
        else "a checkpoint folder holds config.json, tokenizer.json and *.safetensors",
    )


def _read_index(folder: Path) -> dict[str, str]:
    """The index's map of tensors to files; empty where there is no index."""
    if not (folder / INDEX).exists():
        return {}
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ExportError(f"{folder / INDEX} has no weight_map", hint=DOWNLOAD_AGAIN)
    for name in table.values():
        # A plain name: no path of an index leads out of the folder.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
            raise ExportError(f"{folder / INDEX} names {str(name)[:80]!r}, which is no safetensors file beside it")
    return table


def _read_header(file: BoundedFile) -> Iterator[_Placed]:
    if file.size < 8:
        raise file.truncated("the header's length")
    length = int(file.read(0, 8, "the header's length").view("<u8")[0])
    if length > file.size - 8:
        raise file.truncated("the header")
    if length > _MAX_HEADER:
        raise _damaged(file, f"its header has {length} bytes")
    try:
        header = json.loads(file.read(8, length, "the header").tobytes(), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is no JSON: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset + tensor.size)
    for placed in tensors:
        if placed.offset + placed.size > file.size:
            raise file.truncated(f"tensor `{placed.info.name}`")
    yield from tensors


def _tensor(file: BoundedFile, name: str, entry: Any, start: int) -> _Placed:
    if not name.isprintable():  # names go into messages
        raise _damaged(file, f"the tensor name {name[:80]!r} is not printable")
    if not isinstance(entry, dict):
        raise _damaged(file, f"the entry of tensor `{name}` is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _damaged(file, f"tensor `{name}` has the unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > 8:
        raise _damaged(file, f"tensor `{name}` has no usable shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"tensor `{name}` has no usable offsets")
    size = offsets[1] - offsets[0]
    if prod(shape) * _SIZES[dtype] != size:
        raise _damaged(file, f"tensor `{name}` is shaped {shape} in {dtype}, and takes {size} bytes")
    return _Placed(TensorInfo(name, tuple(shape), dtype), file, start + offsets[0], size)


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands in it twice")
    return table


def _damaged(file: BoundedFile, why: str) -> ExportError:
    return ExportError(f"{file.name} is damaged: {why}", hint=DOWNLOAD_AGAIN)
