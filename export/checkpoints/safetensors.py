"""Reads safetensors, one file or several with or without an index, with every number checked.

Source of the format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the data).
Shapes are passed on unchanged, names as `tensor_names` translates them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import FloatArray, TensorInfo, row_range
from edgekit.export.checkpoints.files import DOWNLOAD_AGAIN, BoundedFile, read_json, share_blocks
from edgekit.export.checkpoints.floats import FLOATS, widen
from edgekit.export.checkpoints.tensor_names import hf_names
from edgekit.export.io.block_cache import BlockCache

__all__ = ["INDEX", "Shards", "shard_names"]

INDEX = "model.safetensors.index.json"
_MAX_HEADER = 1 << 25
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    info: TensorInfo
    file: BoundedFile
    offset: int
    size: int


class Shards:
    """The tensors of a checkpoint folder.

    Args:
        folder: Contains `model.safetensors`, or several files with or without `model.safetensors.index.json`.

    Raises:
        ExportError: There is no file, one is missing, truncated or damaged, or the index names a missing tensor.
    """

    def __init__(self, folder: Path) -> None:
        self._files: list[BoundedFile] = []
        self._tensors: dict[str, _StoredTensor] = {}
        self._blocks: BlockCache | None = None
        try:
            self._open(folder)
            names = hf_names(self._tensors)
            self._tensors = {
                names[name]: replace(tensor, info=replace(tensor.info, name=names[name]))
                for name, tensor in self._tensors.items()
            }
            self._blocks = share_blocks(self._files)
        except BaseException:
            self.close()
            raise
        self.infos = {name: tensor.info for name, tensor in self._tensors.items()}

    @property
    def files(self) -> tuple[BoundedFile, ...]:
        """The files, sorted by name; this object closes them."""
        return tuple(self._files)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Read one tensor, or some of its rows, as float32, whatever its float type.

        Raises:
            ExportError: There is no such tensor, it has too few rows, it is not a float, or its bytes cannot be read.
        """
        tensor = self._find(name, FLOATS)
        encoding, shape = tensor.info.encoding, tensor.info.shape
        start, stop = row_range(tensor.info, start, stop)
        values = np.empty((stop - start, *shape[1:]) if shape else (), dtype=np.float32)
        offset = tensor.offset + start * prod(shape[1:]) * _SIZES[encoding]
        _read_floats(tensor.file, offset, encoding, values.reshape(-1), f"tensor `{name}`")
        return values

    def read_columns(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the columns `start:stop` of a matrix: floats as float32, I32 as int32.

        Returns:
            `[rows, stop - start]`, contiguous.

        Raises:
            ExportError: There is no such matrix, or its bytes cannot be read.
        """
        tensor = self._find(name, (*FLOATS, "I32"))
        rows, columns = tensor.info.shape
        encoding, width = tensor.info.encoding, _SIZES[tensor.info.encoding]
        stored = np.empty((rows, (stop - start) * width), dtype=np.uint8)
        tensor.file.read_columns(stored, tensor.offset + start * width, columns * width, f"tensor `{name}`")
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
        tensor = self._find(name, ("I32",))
        values = np.empty(tensor.info.shape, dtype=np.int32)
        tensor.file.read_into(values, tensor.offset, f"tensor `{name}`")
        return values

    def close(self) -> None:
        """Close the files."""
        if self._blocks is not None:
            self._blocks.close()
        for file in self._files:
            file.close()

    def _find(self, name: str, encodings: tuple[str, ...]) -> _StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ExportError(f"the checkpoint has no tensor `{name}`")
        if tensor.info.encoding not in encodings:
            raise ExportError(
                f"tensor `{name}` of {tensor.file.name} is stored as {tensor.info.encoding}, "
                "which edgekit does not read",
                hint=f"it reads {', '.join(sorted(encodings))}",
                code="unsupported_encoding",
            )
        return tensor

    def _open(self, folder: Path) -> None:
        index = _read_index(folder)
        for file_name in sorted(set(index.values())) if index else shard_names(folder):
            if index and not (folder / file_name).exists():
                raise ExportError(f"{folder / file_name} is missing, although {INDEX} names it", hint=DOWNLOAD_AGAIN)
            file = BoundedFile(folder / file_name)
            self._files.append(file)
            for tensor in _read_header(file):
                name = tensor.info.name
                if index and index.get(name) != file_name:
                    continue
                if name in self._tensors:
                    raise ExportError(f"tensor `{name}` is in {self._tensors[name].file.name} and in {file_name}")
                self._tensors[name] = tensor
        missing = next((name for name in index if name not in self._tensors), None)
        if missing is not None:
            raise ExportError(f"tensor `{missing}` is not in {index[missing]}, where {INDEX} says it is")

    def read_words(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Read some rows of a matrix of 32-bit words (U32), in which MLX packs its codes.

        Raises:
            ExportError: There is no such matrix, or it has too few rows.
        """
        tensor = self._tensors.get(name)
        if tensor is None or tensor.info.encoding != "U32":
            raise ExportError(f"the folder has no packed codes `{name}`")
        row_range(tensor.info, start, stop)
        words = np.empty((stop - start, *tensor.info.shape[1:]), dtype="<u4")
        tensor.file.read_into(words, tensor.offset + start * prod(tensor.info.shape[1:]) * 4, f"tensor `{name}`")
        return words


def _read_floats(file: BoundedFile, offset: int, encoding: str, values: FloatArray, what: str) -> None:
    """Fill `values` from a file; float32 is read in place."""
    if encoding == "F32":
        file.read_into(values, offset, what)
        return
    width = _SIZES[encoding]
    if offset % width:
        # A number may span two chunks.
        widen(file.read(offset, values.size * width, what), encoding, values)
        return
    first = 0
    for chunk in file.chunks(offset, values.size * width, what):
        out = values[first : first + chunk.size // width]
        widen(chunk, encoding, out)
        first += out.size


def shard_names(folder: Path) -> list[str]:
    """The safetensors files of a folder's model, where there is no index.

    Raises:
        ExportError: No file was found, or one of a numbered series is missing.
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
    """The index's map of tensors to files; empty if there is no index."""
    if not (folder / INDEX).exists():
        return {}
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ExportError(f"{folder / INDEX} has no weight_map", hint=DOWNLOAD_AGAIN)
    for name in table.values():
        # Only a plain file name: a path could lead out of the folder.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
            raise ExportError(f"{folder / INDEX} names {str(name)[:80]!r}, which is not a safetensors file beside it")
    return table


def _read_header(file: BoundedFile) -> Iterator[_StoredTensor]:
    if file.size < 8:
        raise file.truncated("the header's length")
    length = int(file.read(0, 8, "the header's length").view("<u8")[0])
    if length > file.size - 8:
        raise file.truncated("the header")
    if length > _MAX_HEADER:
        raise _damaged(file, f"its header has {length} bytes")
    try:
        header = json.loads(file.read(8, length, "the header").tobytes(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset + tensor.size)
    for tensor in tensors:
        if tensor.offset + tensor.size > file.size:
            raise file.truncated(f"tensor `{tensor.info.name}`")
    yield from tensors


def _tensor(file: BoundedFile, name: str, entry: Any, start: int) -> _StoredTensor:
    if not name.isprintable():  # names go into messages
        raise _damaged(file, f"the tensor name {name[:80]!r} is not printable")
    if not isinstance(entry, dict):
        raise _damaged(file, f"the entry of tensor `{name}` is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _damaged(file, f"tensor `{name}` has the unknown type {str(dtype)[:40]!r}")
    if not _are_naturals(shape) or len(shape) > 8:
        raise _damaged(file, f"tensor `{name}` has an invalid shape")
    if not _are_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"tensor `{name}` has invalid offsets")
    size = offsets[1] - offsets[0]
    if prod(shape) * _SIZES[dtype] != size:
        raise _damaged(file, f"tensor `{name}` has shape {shape} in {dtype}, but takes {size} bytes")
    return _StoredTensor(TensorInfo(name, tuple(shape), dtype), file, start + offsets[0], size)


def _are_naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def _damaged(file: BoundedFile, why: str) -> ExportError:
    return ExportError(f"{file.name} is damaged: {why}", hint=DOWNLOAD_AGAIN)
