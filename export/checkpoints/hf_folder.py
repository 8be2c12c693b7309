"""Reads a checkpoint folder in Hugging Face's layout: config, safetensors, tokenizer, chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import FloatArray, HashProgress, SourceFile, TensorInfo, TokenizerFiles
from edgekit.export.checkpoints.files import hash_files, read_json, read_small
from edgekit.export.checkpoints.folder_text import TEXT_FILES, read_text_files
from edgekit.export.checkpoints.licences import spdx
from edgekit.export.checkpoints.quantized import LEGACY_QUANT_CONFIGS, layout_of, unpacked
from edgekit.export.checkpoints.safetensors import INDEX, Shards
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["ALLOW_PATTERNS", "FolderCheckpoint"]

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
ALLOW_PATTERNS = (
    "config.json",
    "adapter_config.json",
    *TEXT_FILES,
    "README.md",
    *LEGACY_QUANT_CONFIGS,
    *_LICENCES,
    INDEX,
    "*.safetensors",
)
"""Patterns of the files that edgekit reads, and therefore downloads."""


class FolderCheckpoint:
    """An open checkpoint folder.

    Args:
        folder: Contains `config.json` and safetensors.
        name: The model's name; None takes the folder's.
        identity: Where it came from; None takes the folder's name.
        licence: SPDX identifier; None takes the one in the folder's README.

    Raises:
        ExportError: A file is missing, damaged, or in a format that edgekit does not read.
    """

    def __init__(
        self, folder: Path, *, name: str | None = None, identity: str | None = None, licence: str | None = None
    ) -> None:
        self._folder = folder
        _refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise ExportError(
                f"{folder} has no config.json", hint="a checkpoint folder holds config.json and *.safetensors"
            )
        self._config = read_json(folder / "config.json")
        layout = layout_of(folder, self._config)
        shards = Shards(folder)
        try:
            self._shards = unpacked(shards, layout)
        except BaseException:
            shards.close()
            raise
        self._name = name or folder.absolute().name.lower()
        self._id = identity or folder.absolute().name
        self._licence = licence

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def folder(self) -> Path:
        """The folder's path."""
        return self._folder

    @property
    def id(self) -> str:
        """Where it came from."""
        return self._id

    @property
    def licence(self) -> str:
        """SPDX identifier, or `unknown`."""
        return self._licence or _licence_of(self._folder / "README.md")

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of `config.json`."""
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._shards.infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        """Read one tensor, or some of its rows; see `Checkpoint.read`."""
        return self._shards.read(name, start, stop)

    def tokenizer(self) -> TokenizerFiles:
        """The tokenizer and the chat template."""
        names = [name for name in _LICENCES if (self._folder / name).is_file()]
        extra = {name: read_small(self._folder / name, 1 << 20) for name in names}
        return read_text_files(self._folder, self._config, extra)

    def source(self, progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
        """Configuration, tokenizer and weights, hashed."""
        small = [
            path
            for pattern in ("config.json", *LEGACY_QUANT_CONFIGS, *TEXT_FILES, INDEX)
            for path in sorted(self._folder.glob(pattern))
            if path.is_file()
        ]
        return hash_files(small, self._shards.files, progress)

    def close(self) -> None:
        """Close the weights."""
        self._shards.close()


def _refuse_adapter(folder: Path) -> None:
    """Refuse a LoRA adapter: a fine-tune exported without it would be its base model."""
    found = [name for name in _ADAPTER if (folder / name).is_file()]
    if found:
        raise ExportError(
            f"{folder} has a LoRA adapter ({found[0]}), which edgekit does not merge into the model",
            hint="merge it with PEFT's merge_and_unload() and save_pretrained(), or move it away to export the base",
            code="unsupported_encoding",
        )


def _licence_of(readme: Path) -> str:
    """The licence in a model card's front matter."""
    if not readme.is_file():
        return "unknown"
    try:
        text = read_small(readme, 1 << 22).decode(errors="replace")
        match = re.match(r"\ufeff?---\s*\n(.{0,20000}?)\n---", text, re.DOTALL)
        card = yaml.safe_load(match[1]) if match else None
    except (ExportError, yaml.YAMLError, ValueError, RecursionError):
        return "unknown"
    if not isinstance(card, dict):
        return "unknown"
    licence = card.get("license")
    return spdx(card.get("license_name") if licence == "other" else licence)
