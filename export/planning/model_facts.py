"""The facts a memory plan needs about a model: its configuration, and sample rows of each kind of matrix.

No weights are downloaded: of a model of the hub the small files and the headers are; for a catalogue entry that is not
downloaded yet the catalogue's facts are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checkpoints.gptq import Gptq
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.checkpoints.quantized import layout_of, packing_settings
from edgekit.export.checkpoints.validate import MISSING
from edgekit.export.progress import Report, silent
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.sources.catalog import Entry, find_entry
from edgekit.export.sources.hub import download_small
from edgekit.export.sources.open import hub_model, outline_of
from edgekit.machine import user_path

__all__ = ["ModelFacts", "model_facts"]

Rows = GroupedTensor | npt.NDArray[np.float32]
_ROWS = 8


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model, as far as they are known without its weights.

    Attributes:
        name: Display name.
        basis: Where the facts come from, for display.
        config: The keys of `config.json`.
        encoding: Returns the checkpoint's name for a matrix's storage format.
        rows: Returns sample rows of a matrix; they represent all matrices of that format with as many inputs.
        checkpoint: The checkpoint, whose weights may read as zeros; None if only its configuration is known.
    """

    name: str
    basis: str
    config: Mapping[str, Any]
    encoding: Callable[[Linear], str]
    rows: Callable[[Linear], Rows]
    checkpoint: Checkpoint | None = None


@contextmanager
def model_facts(model: str, *, revision: str | None = None, report: Report = silent) -> Iterator[ModelFacts]:
    """Collect the facts about MODEL, without its weights.

    Args:
        model: A name of `edgekit models`, a GGUF file, a checkpoint folder, a `config.json`, or a model of the hub.
        revision: Branch, tag or commit of a model of the hub.
        report: Receives progress.

    Raises:
        ExportError: The model does not exist, or cannot be read or reached.
        ConfigError: A revision was given for something that has none.
    """
    entry, path = find_entry(model), user_path(model)
    if entry is None and path.suffix == ".json" and path.is_file():
        yield _from_config(path, path.absolute().parent.name)
        return
    if entry is None and (path / "config.json").is_file() and not _has_weights(path):
        yield _from_config(path / "config.json", path.absolute().name)
        return
    with ExitStack() as stack:
        yield _facts_of(model, revision, report, stack)


def _facts_of(model: str, revision: str | None, report: Report, stack: ExitStack) -> ModelFacts:
    """Facts of a checkpoint that the stack closes."""
    entry, on_hub = find_entry(model), hub_model(model)
    try:
        checkpoint = stack.enter_context(outline_of(model, revision=revision, report=report))
    except ExportError as error:
        if on_hub is None or error.code != "download_failed" or on_hub.tag or on_hub.file:
            raise
        # Without a network, the small files of an earlier plan may be there.
        ref = on_hub.at(revision)
        path = download_small(ref.id, ref.revision, report) / "config.json"
        if not path.is_file():
            raise
        name = ref.name if entry is None else entry.name
        return replace(_from_config(path, name), basis=f"config.json of {ref.id}@{path.parent.name[:8]}")
    if checkpoint is not None:
        return _from_checkpoint(checkpoint) if on_hub is None else _from_outline(checkpoint)
    assert entry is not None  # noqa: S101  only an entry of the catalogue has no outline
    assert not isinstance(entry.source, str)  # noqa: S101  and only one with a pinned file
    return _from_catalogue(entry, entry.source.name)


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in {".safetensors", ".bin", ".pt", ".pth"} for path in folder.iterdir())


def _from_checkpoint(checkpoint: Checkpoint) -> ModelFacts:
    """Facts of a local checkpoint, with its own rows."""

    def rows(linear: Linear) -> Rows:
        first = linear.rows.start
        return checkpoint.read(linear.stored.weight, first, min(first + _ROWS, linear.rows.stop))

    basis = "the checkpoint's own tensors"
    return ModelFacts(checkpoint.name, basis, checkpoint.config, _encodings(checkpoint), rows, checkpoint)


def _from_outline(checkpoint: Checkpoint) -> ModelFacts:
    """Facts of a checkpoint without weights, with made-up rows of the same format."""
    encoding = _encodings(checkpoint)
    folder = checkpoint.folder if isinstance(checkpoint, FolderCheckpoint) else None
    packed = None if folder is None else _packed_rows(folder, checkpoint.config)

    def rows(linear: Linear) -> Rows:
        name = encoding(linear)
        if name in _ENCODINGS:
            bits, offset, wide = _ENCODINGS[name]
            return _quantized_rows(linear, bits, 32, offset, wide=wide)
        return packed(linear) if packed is not None and name in {"GPTQ", "AWQ"} else _float_rows(linear)

    where, _, commit = checkpoint.id.partition("@")
    basis = f"{'header' if folder is None else 'config.json'} of {where}@{commit[:8]}"
    return ModelFacts(checkpoint.name, basis, checkpoint.config, encoding, rows, checkpoint)


def _encodings(checkpoint: Checkpoint) -> Callable[[Linear], str]:
    tensors = checkpoint.tensors

    def encoding(linear: Linear) -> str:
        stored = linear.stored.weight
        if stored not in tensors:
            raise ExportError(f"the checkpoint has no tensor `{stored}`", hint=MISSING)
        return tensors[stored].encoding

    return encoding


def _from_config(path: Path, name: str) -> ModelFacts:
    """Facts of a configuration without weights, with made-up rows of the same format."""
    config = read_json(path)
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    float_encoding = {"float32": "F32", "float16": "F16"}.get(dtype, "BF16")
    packed, layout = _packed_rows(path.parent, config), layout_of(path.parent, config)
    settings, _ = packing_settings(path.parent, config) or ({}, "")
    ends = {"model.embed_tokens", *(() if settings.get("lm_head") else ("lm_head",))}

    def encoding(linear: Linear) -> str:
        return float_encoding if layout is None or linear.name in ends else layout.encoding

    def rows(linear: Linear) -> Rows:
        return _float_rows(linear) if packed is None or linear.name in ends else packed(linear)

    return ModelFacts(name, f"{path.name} alone", config, encoding, rows)


def _packed_rows(folder: Path, config: Mapping[str, Any]) -> Callable[[Linear], Rows] | None:
    """Return what makes up rows of a packed matrix; None if matrices are not packed."""
    layout = layout_of(folder, config)
    if layout is None:
        return None
    settings, _ = packing_settings(folder, config) or ({}, "")
    offset = Offset.SYMMETRIC if settings.get("sym", isinstance(layout, Gptq)) else Offset.ZERO_POINT
    bits = layout.bits if isinstance(layout, Gptq) else 4

    def rows(linear: Linear) -> Rows:
        group = layout.group_size
        size = linear.in_features if group is None or linear.in_features % group else group
        if isinstance(layout, Gptq) and layout.reordered and size < linear.in_features:
            return _float_rows(linear)  # its groups are no runs of inputs: see `PackedShards.read`
        return _quantized_rows(linear, bits, size, offset)

    return rows


# The ggml encodings whose codes are kept: bits, offsets, and whether scales need more than float16.
_ENCODINGS = {
    "Q4_0": (4, Offset.SYMMETRIC, False),
    "Q4_1": (4, Offset.FLOAT, False),
    "Q8_0": (8, Offset.SYMMETRIC, False),
    "Q4_K": (4, Offset.FLOAT, True),
}


def _from_catalogue(entry: Entry, file: str) -> ModelFacts:
    """Facts of a GGUF file that is not downloaded: the format from its name, 8-bit ends as in llama.cpp's files."""
    match = re.search(r"[-.](q\d_[0-9k])", file, re.IGNORECASE)
    named = match[1].upper() if match else "Q4_K"

    def encoding(linear: Linear) -> str:
        return named if linear.name.startswith("model.layers.") else "Q8_0"

    def rows(linear: Linear) -> Rows:
        bits, offset, wide = _ENCODINGS.get(encoding(linear), _ENCODINGS["Q4_K"])
        return _quantized_rows(linear, bits, 32, offset, wide=wide)

    return ModelFacts(entry.name, f"the catalogue's facts of {file}", entry.shape, encoding, rows)


def _float_rows(linear: Linear) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal((_ROWS, linear.in_features), np.float32)
    values /= np.float32(64)
    return values


def _quantized_rows(linear: Linear, bits: int, group: int, offset: Offset, *, wide: bool = False) -> GroupedTensor:
    rng = np.random.default_rng(0)
    shape = (_ROWS, linear.in_features // group)
    scales = rng.uniform(0.005, 0.01, shape).astype(np.float16).astype(np.float32)
    if offset is Offset.FLOAT:
        offsets = -rng.uniform(0.04, 0.08, shape).astype(np.float16).astype(np.float32)
    else:
        middle = 1 << (bits - 1)
        points = np.full(shape, middle) if offset is Offset.SYMMETRIC else rng.integers(1, 2 * middle, shape)
        offsets = (-points * scales).astype(np.float32)
    if wide:
        scales, offsets = scales * np.float32(1.37), offsets * np.float32(1.11)
    codes = rng.integers(0, 1 << bits, (_ROWS, linear.in_features), dtype=np.uint8)
    return GroupedTensor(codes, scales, offsets, bits)
