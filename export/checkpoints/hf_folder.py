"""A folder as Hugging Face lays out a checkpoint: config, safetensors, tokenizer, chat template.

It knows the file names and what stands in them; the weights are `safetensors`' affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import FloatArray, HashProgress, SourceFile, TensorInfo, TokenizerFiles
from edgekit.export.checkpoints.files import hash_files, read_json, read_small
from edgekit.export.checkpoints.licences import spdx
from edgekit.export.checkpoints.quantized import SETTINGS, layout_of, unpacked
from edgekit.export.checkpoints.safetensors import INDEX, Shards
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["WANTED", "FolderCheckpoint"]

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    *SETTINGS,
    *_LICENCES,
    INDEX,
    "*.safetensors",
)
"""Patterns of the files that are read, and so of those worth downloading."""

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class FolderCheckpoint:
    """A checkpoint folder, open.

    Args:
        folder: It holds `config.json` and safetensors.
        name: The model's name; None takes the folder's.
        identity: Where it came from; None is the folder's name.
        licence: None takes what the folder's README states.

    Raises:
        ExportError: A file is missing, damaged, or of a kind that edgekit does not read.
    """

    def __init__(
        self, folder: Path, *, name: str | None = None, identity: str | None = None, licence: str | None = None
    ) -> None:
        self._folder = folder
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
        """Where it is."""
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
        if not (self._folder / "tokenizer.json").is_file():
            raise ExportError(
                f"{self._folder} has no tokenizer.json",
                hint="load its tokenizer with transformers' AutoTokenizer and save_pretrained() it there",
            )
        settings = self._optional("tokenizer_config.json")
        special = _special(self._optional("special_tokens_map.json")) | _special(settings)
        return TokenizerFiles(
            tokenizer_json=read_small(self._folder / "tokenizer.json"),
            chat_template=self._chat_template(settings),
            special=special,
            eos_token_ids=self._ends(special.get("eos_token")),
            extra={
                name: read_small(self._folder / name, 1 << 20) for name in _LICENCES if (self._folder / name).is_file()
            },
        )

    def source(self, progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
        """Configuration, tokenizer and weights, hashed."""
        names = ("config.json", *SETTINGS, "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)
        small = [self._folder / name for name in names if (self._folder / name).is_file()]
        return hash_files(small, self._shards.files, progress)

    def close(self) -> None:
        """Close the weights."""
        self._shards.close()

    def _optional(self, name: str) -> dict[str, Any]:
        return read_json(self._folder / name) if (self._folder / name).is_file() else {}

    def _chat_template(self, settings: Mapping[str, Any]) -> str | None:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            try:
                return read_small(path, 1 << 20).decode()
            except UnicodeDecodeError as error:
                raise ExportError(f"{path} is not UTF-8 text") from error
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if template is not None and not isinstance(template, str):
            raise ExportError(f"the chat_template of {self._folder / 'tokenizer_config.json'} is not text")
        return template

    def _ends(self, eos_token: str | None) -> tuple[int, ...]:
        """Ids that end an answer: those of the generation configuration, the configuration and the tokenizer."""
        ids: list[int] = []
        for source in (self._optional("generation_config.json"), self._config):
            stated = source.get("eos_token_id")
            stated = stated if isinstance(stated, list) else [stated]
            ids += [number for number in stated if type(number) is int and number >= 0]
        if eos_token is not None:
            ids += _ids_of(read_json(self._folder / "tokenizer.json"), eos_token)
        if not ids:
            raise ExportError(
                f"{self._folder} names no token that ends an answer", hint="set eos_token_id in generation_config.json"
            )
        return tuple(dict.fromkeys(ids))


def _ids_of(tokenizer: Mapping[str, Any], token: str) -> Iterable[int]:
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("content") == token and type(entry.get("id")) is int:
            yield entry["id"]


def _special(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens as text; a file may hold the text or an object around it."""
    found: dict[str, str] = {}
    for key in _SPECIAL:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found


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
