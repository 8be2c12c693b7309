"""The interface of checkpoint readers, whatever the format on disk.

Names and shapes are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`, `[out, in]`), and so are the
configuration keys: readers of other formats translate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["Checkpoint", "HashProgress", "SourceFile", "TensorInfo", "TokenizerFiles", "row_range"]

FloatArray = npt.NDArray[np.float32]


HashProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Metadata of one tensor, known without reading it.

    Attributes:
        name: Hugging Face name.
        shape: As Hugging Face stores it; `[out, in]` for a linear layer.
        encoding: The format's name for its data type: `BF16`, `Q4_1`, …
    """

    name: str
    shape: tuple[int, ...]
    encoding: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a checkpoint was read from, as the manifest lists it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The tokenizer and chat template of a checkpoint, in Hugging Face's layout.

    Attributes:
        tokenizer_json: Contents of `tokenizer.json` (the `tokenizers` library's format).
        chat_template: The Jinja chat template, None if the checkpoint has none.
        tool_template: The template for chats with tools, where the checkpoint has one of its own; else None.
        special: `bos_token`, `eos_token`, `pad_token`, `unk_token`: those that exist, as strings.
        eos_token_ids: Every token that ends an answer.
        extra: Further files to carry into the bundle unchanged (name -> contents).
        sampling: Defaults of sampling parameters, under edgekit's names (`MODEL_SAMPLING`).
        notes: What was left out or decided where files disagree, one line each, for the user.
    """

    tokenizer_json: bytes
    chat_template: str | None
    special: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    extra: Mapping[str, bytes] = field(default_factory=dict)
    tool_template: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Checkpoint(Protocol):
    """A checkpoint opened for reading. Tensors are read one at a time, on demand."""

    @property
    def name(self) -> str:
        """A short model name, as `/v1/models` shows it: `smollm2-135m-instruct`."""

    @property
    def id(self) -> str:
        """Where it came from: a hub id, a package and version, or a file name."""

    @property
    def licence(self) -> str:
        """SPDX identifier of the weights' licence as the checkpoint states it, else `unknown`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The keys of Hugging Face's `config.json`."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name, in file order."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        """Read one tensor, or some of its rows; only their bytes are read.

        Args:
            name: Hugging Face name.
            start: The first row, along the first axis.
            stop: The row after the last; None is the end.

        Returns:
            A `GroupedTensor` where the checkpoint stores 4- or 8-bit codes with one scale and offset per group
            (GGUF Q4_0, Q4_1, Q8_0, Q4_K; GPTQ; AWQ), else float32. Both are bit-exact to what is stored.

        Raises:
            ExportError: The tensor is missing, its bytes are missing, or it has too few rows.
        """

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer and the chat template.

        Raises:
            ExportError: The checkpoint has no usable one.
        """

    def source(self, progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
        """Hash the files it was read from (reads them once more, in chunks).

        Args:
            progress: Called with the bytes hashed so far and the total; an exception that it raises ends the hashing.
        """

    def close(self) -> None:
        """Release files and memory maps."""


def row_range(info: TensorInfo, start: int, stop: int | None) -> tuple[int, int]:
    """Check a range of rows of a tensor, and return it with its end filled in. A scalar has one row.

    Raises:
        ExportError: The tensor has too few rows.
    """
    rows = info.shape[0] if info.shape else 1
    end = rows if stop is None else stop
    if not 0 <= start <= end <= rows:
        raise ExportError(f"tensor `{info.name}` has {rows} rows; rows {start} to {end} were requested")
    return start, end
