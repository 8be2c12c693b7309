"""What MODEL is, as far as a memory plan needs it: a configuration, and a few rows of each kind of matrix.

No weights are downloaded: of a hub id `config.json` alone is fetched, and of a catalogue entry that is not there the
catalogue's facts serve. It knows no target.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.catalog import Entry, find_entry
from edgekit.export.checkpoints import open_checkpoint
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checkpoints.hub import HUB_ID, fetch_config
from edgekit.export.fetch import local
from edgekit.export.progress import Report, silent
from edgekit.export.quantization.grid import GroupedTensor, Offset

__all__ = ["Source", "plan_source"]

Rows = GroupedTensor | npt.NDArray[np.float32]
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be planned for.

    Attributes:
        name: For a person.
        basis: What the plan rests on, for a person.
        config: The keys of `config.json`.
        encoding: Gives the checkpoint's word for how a matrix is stored.
        rows: Gives a few rows of a matrix; they stand for all that are stored alike and have as many inputs.
        close: Releases files.
    """

    name: str
    basis: str
    config: Mapping[str, Any]
    encoding: Callable[[Linear], str]
    rows: Callable[[Linear], Rows]
    close: Callable[[], None] = lambda: None


def plan_source(model: str, *, revision: str | None = None, report: Report = silent) -> Source:
    """Find out what MODEL is, without its weights.

    Args:
        model: A name of `edgekit models`, a GGUF file, a checkpoint folder, a `config.json`, or a hub id.
        revision: Branch, tag or commit of a hub id.
        report: Receives progress.

    Raises:
        ExportError: There is no such thing, or it cannot be read or reached.
        ConfigError: A revision was given for something that has none.
    """
    entry, path = find_entry(model), Path(model).expanduser()
    if entry is not None:
        if isinstance(entry.source, str):
            return _hub(entry.source, revision, entry.name)
        if local(entry.source) is None:
            return _catalogued(entry, entry.source.name)
    else:
        if path.suffix == ".json" and path.is_file():
            return _configured(path.absolute().parent.name, f"{path.name} alone", read_json(path))
        if (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
            return _configured(path.absolute().name, "config.json alone", read_json(path / "config.json"))
        if not path.exists() and HUB_ID.fullmatch(model):
            return _hub(model, revision, model.split("/")[1].lower())
    return _opened(model, revision, report)


def _opened(model: str, revision: str | None, report: Report) -> Source:
    """A checkpoint that is here: the rows are its own."""
    checkpoint = open_checkpoint(model, revision=revision, report=report)
    tensors = checkpoint.tensors

    def encoding(linear: Linear) -> str:
        stored = linear.stored.weight
        if stored not in tensors:
            raise ExportError(f"the checkpoint has no tensor `{stored}`", hint="is a shard missing?")
        return tensors[stored].encoding

    def rows(linear: Linear) -> Rows:
        first = linear.rows.start
        return checkpoint.read(linear.stored.weight, first, min(first + _ROWS, linear.rows.stop))

    return Source(checkpoint.name, "the checkpoint's own tensors", checkpoint.config, encoding, rows, checkpoint.close)


def _hub(hub_id: str, revision: str | None, name: str) -> Source:
    config, commit = fetch_config(hub_id, revision)
    return _configured(name, f"config.json of {hub_id}@{commit[:8]}", config)


def _configured(name: str, basis: str, config: Mapping[str, Any]) -> Source:
    """Only a configuration is known: numbers of the same kind stand for the weights."""
    settings = config.get("quantization_config") or config.get("quantization")
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    word = {"float32": "F32", "float16": "F16"}.get(dtype, "BF16")
    if not isinstance(settings, Mapping):
        return Source(name, basis, config, lambda _: word, _floats)
    method, bits, group = settings.get("quant_method"), settings.get("bits", 4), settings.get("group_size", 128)
    symmetric = bool(settings.get("sym", method != "awq"))
    ends = {"model.embed_tokens", *(() if settings.get("lm_head") else ("lm_head",))}
    whole = type(group) is int and type(bits) is int and bits in {4, 8}

    def encoding(linear: Linear) -> str:
        return str(method).upper() if whole and linear.name not in ends else word

    def rows(linear: Linear) -> Rows:
        if not whole or linear.name in ends:
            return _floats(linear)
        size = linear.in_features if group <= 0 or linear.in_features % group else group
        return _codes(linear, bits, size, Offset.SYMMETRIC if symmetric else Offset.ZERO_POINT)

    return Source(name, basis, config, encoding, rows)


# What ggml's encodings have that are carried over: bits, offsets, and whether scales are wider than float16.
_ENCODINGS = {
    "Q4_0": (4, Offset.SYMMETRIC, False),
    "Q4_1": (4, Offset.FLOAT, False),
    "Q8_0": (8, Offset.SYMMETRIC, False),
    "Q4_K": (4, Offset.FLOAT, True),
}


def _catalogued(entry: Entry, file: str) -> Source:
    """A GGUF file that is not here: its name says how it is stored, ends with 8 bits as llama.cpp makes them."""
    match = re.search(r"[-.](q\d_[0-9k])", file, re.IGNORECASE)
    named = match[1].upper() if match else "Q4_K"

    def encoding(linear: Linear) -> str:
        return named if linear.name.startswith("model.layers.") else "Q8_0"

    def rows(linear: Linear) -> Rows:
        bits, offset, wide = _ENCODINGS.get(encoding(linear), _ENCODINGS["Q4_K"])
        return _codes(linear, bits, 32, offset, wide=wide)

    return Source(entry.name, f"the catalogue's facts of {file}", entry.shape, encoding, rows)


def _floats(linear: Linear) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal((_ROWS, linear.in_features), np.float32)
    values /= np.float32(64)
    return values


def _codes(linear: Linear, bits: int, group: int, offset: Offset, *, wide: bool = False) -> GroupedTensor:
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
