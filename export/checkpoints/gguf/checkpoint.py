"""Reads GGUF as a Hugging Face checkpoint: translates names, configuration and row order, and decodes tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import FloatArray, HashProgress, SourceFile, TensorInfo, TokenizerFiles, row_range
from edgekit.export.checkpoints.files import hash_files, share_blocks
from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.checkpoints.gguf.blocks import BLOCKS, Block
from edgekit.export.checkpoints.gguf.config import hf_config
from edgekit.export.checkpoints.gguf.container import Container, GgufTensor
from edgekit.export.checkpoints.gguf.names import hf_name, is_rope_table, stores_norm_plus_one
from edgekit.export.checkpoints.gguf.shards import open_shards, stem_of
from edgekit.export.checkpoints.gguf.tokenizer import build_tokenizer
from edgekit.export.checkpoints.licences import spdx
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["GgufCheckpoint"]

_Array = TypeVar("_Array", bound=np.generic)
_Chunks = Iterator[tuple[slice, npt.NDArray[np.uint8]]]
# Bytes decoded at a time: what a decoder needs besides its result stays a few times this.
_CHUNK = 1 << 20


class GgufCheckpoint:
    """An open `.gguf` file, or a series of split files.

    Args:
        path: The file; any one of a series.
        name: The model's name; None derives it from the file's.
        identity: Where it came from; None takes the file's name.
        licence: SPDX identifier; None takes the one in the file.
        fixes: Corrections to the chat template and special tokens.
        sha256: Expected SHA-256 of the file; None does not check.

    Raises:
        ExportError: It is not a GGUF file that edgekit can read.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        identity: str | None = None,
        licence: str | None = None,
        fixes: TextFixes | None = None,
        sha256: str | None = None,
    ) -> None:
        self._files, self._container = open_shards(path)
        self._file = self._files[0]
        self._block_cache = share_blocks(self._files)
        try:
            self._architecture = str(self._container.metadata.get("general.architecture", ""))
            self._tensors = _by_hf_name(self._container, self._architecture, path.name)
            shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
            self._config = hf_config(self._container.metadata, shapes, self._rope_tables())
        except BaseException:
            self.close()
            raise
        self._name = name or re.sub(r"[-._](I?Q\d\w*|B?F16|F32)$", "", stem_of(path), flags=re.IGNORECASE).lower()
        self._id = identity or self._file.name
        self._licence = licence
        self._fixes = fixes or TextFixes()
        self._sha256 = sha256

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def id(self) -> str:
        """Where it came from."""
        return self._id

    @property
    def licence(self) -> str:
        """SPDX identifier, or `unknown`."""
        return self._licence or spdx(self._container.metadata.get("general.license"))

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration under Hugging Face's keys."""
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""
        return {name: TensorInfo(name, tensor.shape, tensor.encoding) for name, tensor in self._tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        """Read one tensor, or some of its rows; see `Checkpoint.read`."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ExportError(f"{self._file.name} has no tensor `{name}`")
        block = _block(tensor)
        start, stop = row_range(TensorInfo(name, tensor.shape, tensor.encoding), start, stop)
        heads = self._interleaved_heads(name, tensor)
        # Reordering moves rows within a head only, so full heads are read and surplus rows dropped.
        first, last = (start, stop) if heads is None else _full_heads(start, stop, tensor.shape[0] // heads)
        order = None if heads is None else _row_order(tensor.shape[0] // heads, first, start, stop)
        if block.grouped is not None and len(tensor.shape) == 2:
            return self._grouped(tensor, block, first, last, order)
        values = _reordered(self._floats(tensor, block, first, last), order)
        if not stores_norm_plus_one(self._architecture, name):
            return values
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is for the caller to refuse
            norm: FloatArray = values - np.float32(1)
        return norm

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer and the chat template, with the catalogue's corrections."""
        return build_tokenizer(self._container.metadata, self._file.name, int(self._config["vocab_size"]), self._fixes)

    def source(self, progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
        """Hash the files; see `Checkpoint.source`."""
        found = hash_files((), self._files, progress)
        if self._sha256 is not None and found[0].sha256 != self._sha256:
            raise ExportError(
                f"{self._file.path} is not the file that was fetched: its SHA-256 has changed",
                hint="delete it; it is fetched again when needed",
            )
        return found

    def close(self) -> None:
        """Close the files."""
        if self._block_cache is not None:
            self._block_cache.close()
        for file in self._files:
            file.close()

    def _rope_tables(self) -> dict[str, FloatArray]:
        """The RoPE scaling tensors, by name."""
        tables = [tensor for tensor in self._container.tensors if is_rope_table(tensor.name)]
        return {table.name: self._floats(table, _block(table), 0, table.shape[0]) for table in tables}

    def _interleaved_heads(self, name: str, tensor: GgufTensor) -> int | None:
        """Number of heads in llama's q or k, whose rows are in another order; None for other tensors."""
        heads_key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2:][0])
        if heads_key is None or self._config["model_type"] != "llama":
            return None
        heads, rows = int(self._config[heads_key]), tensor.shape[0]
        if rows % (2 * heads):
            raise ExportError(f"tensor `{name}` has {rows} rows, which do not divide into {heads} heads")
        return heads

    def _grouped(
        self, tensor: GgufTensor, block: Block, first: int, last: int, order: npt.NDArray[np.intp] | None
    ) -> GroupedTensor:
        """Read the rows `first:last` of a matrix, then select `order` from them."""
        assert block.grouped is not None  # noqa: S101  the caller checked it
        rows, columns = last - first, tensor.shape[1]
        begin, total = first * columns // block.length, rows * columns // block.length
        groups = block.length // block.group_size
        codes = np.empty((total, block.length), dtype=np.uint8)
        scales = np.empty((total, groups), dtype=np.float32)
        offsets = np.empty_like(scales)
        with np.errstate(invalid="ignore", over="ignore"):
            for span, blocks in self._blocks(tensor, block, begin, total):
                part = block.grouped(blocks)
                codes[span], scales[span], offsets[span] = part.codes, part.scales, part.offsets
        if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
            raise ExportError(f"tensor `{tensor.name}` contains NaN or infinity in its scales", hint="fetch it again")
        per_row = columns // block.group_size
        return GroupedTensor(
            codes=_reordered(codes.reshape(rows, columns), order),
            scales=_reordered(scales.reshape(rows, per_row), order),
            offsets=_reordered(offsets.reshape(rows, per_row), order),
            bits=block.bits,
        )

    def _floats(self, tensor: GgufTensor, block: Block, first: int, last: int) -> FloatArray:
        """Read the rows `first:last` as float32."""
        width = prod(tensor.shape[1:])
        # A matrix row is an integral number of blocks; a vector's rows are elements, and may begin within one.
        begin, end = first * width // block.length, -(-last * width // block.length)
        values = np.empty((end - begin, block.length), dtype=np.float32)
        # Scales of damaged files may be infinite; the caller refuses such values.
        with np.errstate(invalid="ignore", over="ignore"):
            for span, blocks in self._blocks(tensor, block, begin, end - begin):
                values[span] = block.decode(blocks)
        skipped = first * width - begin * block.length
        rows = values.reshape(-1)[skipped : skipped + (last - first) * width]
        return rows.reshape(last - first, *tensor.shape[1:])

    def _blocks(self, tensor: GgufTensor, block: Block, begin: int, total: int) -> _Chunks:
        """Read `total` blocks from number `begin` on; yield slices of those read, and their bytes."""
        step = max(1, _CHUNK // block.size)
        buffer = np.empty((min(step, total), block.size), dtype=np.uint8)
        for start in range(0, total, step):
            blocks = buffer[: total - start]
            tensor.file.read_into(blocks, tensor.offset + (begin + start) * block.size, f"tensor `{tensor.name}`")
            yield slice(start, start + len(blocks)), blocks


def _block(tensor: GgufTensor) -> Block:
    if tensor.encoding not in BLOCKS:
        raise ExportError(
            f"tensor `{tensor.name}` of {tensor.file.name} is stored as {tensor.encoding}, which edgekit does not read",
            hint=f"it reads {', '.join(BLOCKS)}: take another quantization of the model",
            code="unsupported_encoding",
        )
    return BLOCKS[tensor.encoding]


def _full_heads(start: int, stop: int, width: int) -> tuple[int, int]:
    """The rows of all heads of `width` rows that overlap `start:stop`."""
    return start // width * width, -(-stop // width) * width


def _row_order(width: int, first: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """Indices in GGUF of the rows `start:stop` in Hugging Face's order, relative to the row `first`.

    GGUF interleaves the two halves of a head, (0, 0+d/2, 1, 1+d/2, …); Hugging Face stores one after the other.
    """
    head, row = np.divmod(np.arange(start, stop), width)
    half, pair = np.divmod(row, width // 2)
    order: npt.NDArray[np.intp] = head * width + 2 * pair + half - first
    return order


def _reordered(values: npt.NDArray[_Array], order: npt.NDArray[np.intp] | None) -> npt.NDArray[_Array]:
    return values if order is None else values[order]


def _by_hf_name(container: Container, architecture: str, file: str) -> dict[str, GgufTensor]:
    """Tensors by Hugging Face name."""
    named: dict[str, GgufTensor] = {}
    for tensor in container.tensors:
        if is_rope_table(tensor.name):
            continue
        name = hf_name(architecture, tensor.name)
        if name in named:
            raise ExportError(f"{file} has two tensors for `{name}`")
        named[name] = tensor
    return named
