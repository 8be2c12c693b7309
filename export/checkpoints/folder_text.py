"""Reads the tokenizer, chat templates and sampling defaults of a folder in Hugging Face's layout.

Several files may state the same fact: where they differ, the one that transformers takes counts, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.added_tokens import added_tokens, complete_tokenizer
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.end_tokens import AddedToken, end_tokens
from edgekit.export.checkpoints.files import read_json, read_small
from edgekit.export.checkpoints.sampling import hf_sampling

__all__ = ["TEXT_FILES", "read_text_files"]

TEXT_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files that this module reads."""

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_TOOLS = "tool_use"


def read_text_files(folder: Path, config: Mapping[str, Any], extra: Mapping[str, bytes]) -> TokenizerFiles:
    """Read a checkpoint folder's tokenizer and chat template.

    Args:
        folder: The checkpoint's folder.
        config: Its `config.json`.
        extra: Further files to carry into the bundle.

    Raises:
        ExportError: A file is missing or damaged, two files contradict each other, or no token ends an answer.
    """
    return _Folder(folder, config).read(extra)


class _Folder:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = config
        self._notes: list[str] = []

    def read(self, extra: Mapping[str, bytes]) -> TokenizerFiles:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise ExportError(
                f"{self._folder} has no tokenizer.json",
                hint="load its tokenizer with transformers' AutoTokenizer and save_pretrained() it there",
            )
        settings, generation = self._optional("tokenizer_config.json"), self._optional("generation_config.json")
        special, more = self._special(settings), self._additional(settings)
        contents, tokenizer = complete_tokenizer(
            read_small(path),
            read_json(path),
            settings=settings,
            added=self._optional("added_tokens.json"),
            special=[*special.values(), *more],
        )
        added = added_tokens(tokenizer)
        templates = self._templates(settings)
        template = templates.pop("default", None)
        lost = next((text for text in more if text not in added and text in (template or "")), None)
        if lost is not None:
            raise ExportError(
                f"the chat template writes the special token `{lost}`, which tokenizer.json does not have",
                hint="load the tokenizer with transformers' AutoTokenizer and save_pretrained() it again",
            )
        stated = self._stated(generation, added, special.get("eos_token"))
        ends = end_tokens(stated, added, template, special)
        if not ends:
            raise ExportError(
                f"{self._folder} names no token that ends an answer", hint="set eos_token_id in generation_config.json"
            )
        states = (self._folder / "generation_config.json").is_file()
        sampling, notes = hf_sampling(generation) if states else hf_sampling(self._config, "config.json")
        self._notes += notes
        tool_template = templates.pop(_TOOLS, None)
        self._notes += [
            f"the chat template `{name}` is left out: edgekit uses `default` and `tool_use`"
            for name in sorted(templates)
        ]
        return TokenizerFiles(
            tokenizer_json=contents,
            chat_template=template,
            tool_template=tool_template,
            special=special,
            eos_token_ids=ends,
            extra=extra,
            sampling=sampling,
            notes=tuple(self._notes),
        )

    def _optional(self, name: str) -> dict[str, Any]:
        return read_json(self._folder / name) if (self._folder / name).is_file() else {}

    def _special(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Special tokens as strings; a file may have the string itself or an object with `content`."""
        found: dict[str, str] = {}
        for source in (settings, self._optional("special_tokens_map.json")):
            for key in _SPECIAL:
                value = source.get(key)
                token = value.get("content") if isinstance(value, dict) else value
                if isinstance(token, str) and found.setdefault(key, token) != token:
                    self._notes.append(
                        f"tokenizer_config.json has the {key} `{found[key]}`, special_tokens_map.json `{token}`: the "
                        "former is taken"
                    )
        return found

    def _additional(self, settings: Mapping[str, Any]) -> list[str]:
        """Texts of the special tokens that have no role of their own."""
        found: list[str] = []
        for source in (settings, self._optional("special_tokens_map.json")):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                stated = source.get(key)
                values = stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else ()
                texts = [value.get("content") if isinstance(value, dict) else value for value in values]
                found += [text for text in texts if isinstance(text, str)]
        return list(dict.fromkeys(found))

    def _templates(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Chat templates by name, from the four places where they may be."""
        found: dict[str, str] = {}
        places: dict[str, str] = {}
        legacy = self._optional("chat_template.json").get("chat_template")
        sources: list[tuple[str, object]] = [("chat_template.jinja", self._text("chat_template.jinja"))]
        more = sorted((self._folder / "additional_chat_templates").glob("*.jinja"))
        sources.append(("additional_chat_templates", {path.stem: self._text(path.name, path.parent) for path in more}))
        sources += [("tokenizer_config.json", settings.get("chat_template")), ("chat_template.json", legacy)]
        for file, stated in sources:
            for name, template in _by_name(stated).items():
                if not isinstance(name, str) or not isinstance(template, str):
                    raise ExportError(f"the chat_template of {self._folder / file} is not a string")
                if found.setdefault(name, template) != template:
                    self._notes.append(f"{places[name]} and {file} have different chat templates: the former is taken")
                places.setdefault(name, file)
        return found

    def _text(self, name: str, folder: Path | None = None) -> str | None:
        path = (folder or self._folder) / name
        if not path.is_file():
            return None
        try:
            return read_small(path, 1 << 20).decode()
        except UnicodeDecodeError as error:
            raise ExportError(f"{path} is not UTF-8") from error

    def _stated(self, generation: Mapping[str, Any], added: Mapping[str, AddedToken], eos: str | None) -> list[int]:
        """Ids of end tokens from the generation configuration, the configuration and the tokenizer."""
        first = _ids(generation)
        ids, known = list(first), {token.id for token in added.values()}
        for number in _ids(self._config):
            # A value left from another model would cut answers at an ordinary word.
            if first and number not in first and number not in known:
                self._notes.append(
                    f"config.json has the eos_token_id {number}, ordinary text: generation_config.json counts"
                )
            else:
                ids.append(number)
        if eos is not None and eos in added:
            ids.append(added[eos].id)
        return ids


def _ids(source: Mapping[str, Any]) -> list[int]:
    stated = source.get("eos_token_id")
    stated = stated if isinstance(stated, list) else [stated]
    return [number for number in stated if type(number) is int and number >= 0]


def _by_name(stated: object) -> dict[Any, Any]:
    """One template, or several by name, as a mapping."""
    if isinstance(stated, list):
        return {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
    if isinstance(stated, dict):
        return stated
    return {} if stated is None else {"default": stated}
