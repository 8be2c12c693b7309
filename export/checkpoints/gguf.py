"""A GGUF file as a Hugging Face checkpoint: names, configuration and row order translated, tensors decoded.

The container is `gguf_container`'s affair, the packing
`gguf_blocks`', the tokenizer `gguf_tokenizer`'s.
"""

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
from edgekit.export.checkpoints.gguf_blocks import BLOCKS, Block
from edgekit.export.checkpoints.gguf_config import hf_config
from edgekit.export.checkpoints.gguf_container import Container, Placed
from edgekit.export.checkpoints.gguf_names import hf_name, is_rope_table, stores_norm_plus_one
from edgekit.export.checkpoints.gguf_parts import open_parts, stem_of
from edgekit.export.checkpoints.gguf_tokenizer import build_tokenizer
from edgekit.export.checkpoints.licences import spdx
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["GgufCheckpoint"]

_Array = TypeVar("_Array", bound=np.generic)
_Chunks = Iterator[tuple[slice, npt.NDArray[np.uint8]]]
# Bytes decoded at a time: what a decoder needs besides its result stays a few times this.
_CHUNK = 1 << 20


class GgufCheckpoint:
    """A `.gguf` file, or a series of them, open.

    Args:
        path: The file; of a series, any.
        name: The model's name; None derives it from the file's.
        identity: Where it came from; None is the file's name.
        licence: None takes what the file states.
        fixes: Corrections of the text side.
        sha256: What the file must hash to; None does not check.

    Raises:
        ExportError: It is not a GGUF file that edgekit reads.
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
        self._files, self._container = open_parts(path)
        self._file = self._files[0]
        self._shared = share_blocks(self._files)
        try:
            self._architecture = str(self._container.metadata.get("general.architecture", ""))
            self._placed = _named(self._container, self._architecture, path.name)
            shapes = {name: placed.shape for name, placed in self._placed.items()}
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
        return {name: TensorInfo(name, placed.shape, placed.encoding) for name, placed in self._placed.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        """Read one tensor, or some of its rows; see `Checkpoint.read`."""
        placed = self._placed.get(name)
        if placed is None:
            raise ExportError(f"{self._file.name} has no tensor `{name}`")
        block = _block(placed)
        start, stop = row_range(TensorInfo(name, placed.shape, placed.encoding), start, stop)
        heads = self._interleaved_heads(name, placed)
        # Reordering moves rows within a head only: those of whole heads are read, and the rest is dropped.
        first, last = (start, stop) if heads is None else _whole_heads(start, stop, placed.shape[0] // heads)
        order = None if heads is None else _row_order(placed.shape[0] // heads, first, start, stop)
        if block.grouped is not None and len(placed.shape) == 2:
            return self._grouped(placed, block, first, last, order)
        values = _reordered(self._floats(placed, block, first, last), order)
        if not stores_norm_plus_one(self._architecture, name):
            return values
        with np.errstate(invalid="ignore", over="ignore"):  # a number that is none is for the reader to refuse
            less: FloatArray = values - np.float32(1)
        return less

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer and the chat template, with the catalogue's corrections."""
        return build_tokenizer(self._container.metadata, self._file.name, int(self._config["vocab_size"]), self._fixes)

    def source(self, progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
        """The files, hashed."""
        found = hash_files((), self._files, progress)
        if self._sha256 is not None and found[0].sha256 != self._sha256:
            raise ExportError(
                f"{self._file.path} is not the file that was fetched: its SHA-256 has changed",
                hint="delete it; it is fetched again when it is needed",
            )
        return found

    def close(self) -> None:
        """Close the files."""
        if self._shared is not None:
            self._shared.close()
        for file in self._files:
            file.close()

    def _rope_tables(self) -> dict[str, FloatArray]:
        """The tensors that say how RoPE is scaled, by name."""
        tables = [tensor for tensor in self._container.tensors if is_rope_table(tensor.name)]
        return {table.name: self._floats(table, _block(table), 0, table.shape[0]) for table in tables}

    def _interleaved_heads(self, name: str, placed: Placed) -> int | None:
        """How many heads share the rows of llama's q or k, which are in another order; None for other tensors."""
        heads_key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2:][0])
        if heads_key is None or self._config["model_type"] != "llama":
            return None
        heads, rows = int(self._config[heads_key]), placed.shape[0]
        if rows % (2 * heads):
            raise ExportError(f"tensor `{name}` has {rows} rows, which {heads} heads cannot share")
        return heads

    def _grouped(
        self, placed: Placed, block: Block, first: int, last: int, order: npt.NDArray[np.intp] | None
    ) -> GroupedTensor:
        """The rows `first:last` of a matrix, then in `order`."""
        assert block.grouped is not None  # noqa: S101  the caller chose by it
        rows, columns = last - first, placed.shape[1]
        begin, total = first * columns // block.length, rows * columns // block.length
        groups = block.length // block.group_size
        codes = np.empty((total, block.length), dtype=np.uint8)
        scales = np.empty((total, groups), dtype=np.float32)
        offsets = np.empty_like(scales)
        with np.errstate(invalid="ignore", over="ignore"):
            for span, blocks in self._blocks(placed, block, begin, total):
                part = block.grouped(blocks)
                codes[span], scales[span], offsets[span] = part.codes, part.scales, part.offsets
        if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
            raise ExportError(f"tensor `{placed.name}` has a scale that is no finite number", hint="fetch it again")
        per_row = columns // block.group_size
        return GroupedTensor(
            codes=_reordered(codes.reshape(rows, columns), order),
            scales=_reordered(scales.reshape(rows, per_row), order),
            offsets=_reordered(offsets.reshape(rows, per_row), order),
            bits=block.bits,
        )

    def _floats(self, placed: Placed, block: Block, first: int, last: int) -> FloatArray:
        """The rows `first:last`."""
        width = prod(placed.shape[1:])
        # A row of a matrix is a whole number of blocks; a vector's rows are elements, and may begin within one.
        begin, end = first * width // block.length, -(-last * width // block.length)
        values = np.empty((end - begin, block.length), dtype=np.float32)
        # Scales of damaged files may be infinite; that is for whoever reads the values to refuse.
        with np.errstate(invalid="ignore", over="ignore"):
            for span, blocks in self._blocks(placed, block, begin, end - begin):
                values[span] = block.decode(blocks)
        skipped = first * width - begin * block.length
        wanted = values.reshape(-1)[skipped : skipped + (last - first) * width]
        return wanted.reshape(last - first, *placed.shape[1:])

    def _blocks(self, placed: Placed, block: Block, begin: int, total: int) -> _Chunks:
        """Read `total` blocks from the one numbered `begin`: places among those read, and their bytes."""
        step = max(1, _CHUNK // block.size)
        buffer = np.empty((min(step, total), block.size), dtype=np.uint8)
        for start in range(0, total, step):
            blocks = buffer[: total - start]
            placed.file.read_into(blocks, placed.offset + (begin + start) * block.size, f"tensor `{placed.name}`")
            yield slice(start, start + len(blocks)), blocks


def _block(placed: Placed) -> Block:
    if placed.encoding not in BLOCKS:
        raise ExportError(
            f"tensor `{placed.name}` of {placed.file.name} is stored as {placed.encoding}, which edgekit does not read",
            hint=f"it reads {', '.join(BLOCKS)}: take another quantization of the model",
            code="unsupported_encoding",
        )
    return BLOCKS[placed.encoding]


def _whole_heads(start: int, stop: int, width: int) -> tuple[int, int]:
    """The rows of all heads of `width` rows that share one with `start:stop`."""
    return start // width * width, -(-stop // width) * width


def _row_order(width: int, first: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """Where GGUF keeps the rows `start:stop` of Hugging Face's order, counted from the row `first`.

    GGUF keeps the two halves of a rotated pair beside each other, (0, 0+d/2, 1, 1+d/2, …) of each head;
    Hugging Face keeps the halves of a head one after the other.
    """
    head, row = np.divmod(np.arange(start, stop), width)
    half, pair = np.divmod(row, width // 2)
    order: npt.NDArray[np.intp] = head * width + 2 * pair + half - first
    return order


def _reordered(values: npt.NDArray[_Array], order: npt.NDArray[np.intp] | None) -> npt.NDArray[_Array]:
    return values if order is None else values[order]


def _named(container: Container, architecture: str, file: str) -> dict[str, Placed]:
    """The tensors by Hugging Face name."""
    named: dict[str, Placed] = {}
    for placed in container.tensors:
        if is_rope_table(placed.name):
            continue
        name = hf_name(architecture, placed.name)
        if name in named:
            raise ExportError(f"{file} has two tensors that are `{name}`")
        named[name] = placed
    return named
