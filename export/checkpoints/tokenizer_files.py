"""Checks and writes a bundle's tokenizer, chat template and configuration, in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenizers import Tokenizer

from edgekit.errors import EdgekitError, ExportError
from edgekit.export.checkpoints.added_tokens import added_tokens
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.end_tokens import end_tokens
from edgekit.export.checkpoints.files import read_small
from edgekit.export.checkpoints.sampling import hf_generation_config
from edgekit.generation.chat.template import TOOL_TEMPLATE, ChatTemplate

__all__ = ["check_text", "check_tokens", "read_tokenizer", "with_chat_template", "write_text_files"]

_NO_TEMPLATE = (
    "the checkpoint has no chat template: its bundle continues text (/v1/completions) and answers no chats; "
    "give a template in a file at export, or take the -Instruct variant of the model"
)


def with_chat_template(tokenizer: TokenizerFiles, file: Path | None) -> TokenizerFiles:
    """Return tokenizer files with the chat template in a file, if one is given; its end of a turn ends answers too.

    Without any chat template a note says that the model only continues text.

    Raises:
        ExportError: The file cannot be read.
    """
    if file is None:
        missing = () if tokenizer.chat_template is not None else (_NO_TEMPLATE,)
        return replace(tokenizer, notes=(*tokenizer.notes, *missing))
    try:
        template = read_small(file, 1 << 20).decode()
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8") from error
    added = added_tokens(json.loads(tokenizer.tokenizer_json))
    ends = end_tokens(tokenizer.eos_token_ids, added, template, tokenizer.special)
    return replace(tokenizer, chat_template=template, tool_template=None, eos_token_ids=ends)


def check_text(tokenizer: TokenizerFiles) -> None:
    """Refuse an invalid chat template, before any work is done.

    Raises:
        ExportError: A template is invalid.
    """
    try:
        for template in (tokenizer.chat_template, tokenizer.tool_template):
            if template is not None:
                ChatTemplate(template)
    except EdgekitError as error:
        raise ExportError(f"the checkpoint cannot answer a chat: {error.message}", hint=error.hint) from error


def read_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Parse the contents of a `tokenizer.json`.

    Raises:
        ExportError: They are not a tokenizer.
    """
    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"tokenizer.json is not a tokenizer: {' '.join(str(error).split())[:200]}") from error


def check_tokens(tokenizer: TokenizerFiles, vocab_size: int) -> None:
    """Refuse a tokenizer with tokens that the model does not have.

    An added token beyond the model's vocabulary is accepted (Gemma 3's `<image_soft_token>` is one), unless the chat
    template writes it or it ends an answer.

    Args:
        tokenizer: The checkpoint's tokenizer, with a chat template.
        vocab_size: Number of tokens in the model's vocabulary.

    Raises:
        ExportError: `tokenizer.json` is not a tokenizer, or another model's; or a chat could not begin or end.
    """
    backend = read_tokenizer(tokenizer.tokenizer_json)
    if min(tokenizer.eos_token_ids) >= vocab_size:
        raise ExportError(
            f"no answer would end: the end token is {min(tokenizer.eos_token_ids)}, but the model has {vocab_size} "
            "tokens",
            hint="set eos_token_id in generation_config.json",
        )
    added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    largest = max((number for text, number in backend.get_vocab().items() if text not in added), default=0)
    if largest >= vocab_size:
        raise ExportError(
            f"the tokenizer has a token {largest}, but the model has {vocab_size} tokens: it is another model's",
            hint="put the model's own tokenizer.json beside its weights",
        )
    template = "\n".join(filter(None, (tokenizer.chat_template, tokenizer.tool_template)))
    variables = {name: text for name, text in tokenizer.special.items() if name in template}
    for name, text in variables.items():
        if len(backend.encode(text, add_special_tokens=False).ids) != 1:
            raise ExportError(
                f"the chat template writes the {name} `{text}`, which the tokenizer splits",
                hint="load the tokenizer with transformers' AutoTokenizer and save_pretrained() it again",
            )
    written = [template, *variables.values()]
    for text, number in added.items():
        if number >= vocab_size and any(text in part for part in written):
            raise ExportError(
                f"the chat template writes `{text}`, token {number}, but the model has {vocab_size} tokens",
                hint="resize the embedding to the tokenizer's length before saving the model, or fix the template",
            )


def write_text_files(
    folder: Path, config: Mapping[str, object], tokenizer: TokenizerFiles, context_length: int, *, licence: str
) -> None:
    """Write configuration, tokenizer, chat template and licence.

    Args:
        folder: The bundle's folder.
        config: The artifact's `config.json`.
        tokenizer: The checkpoint's tokenizer and chat template, checked.
        context_length: Longest sequence in tokens.
        licence: SPDX identifier of the weights, or `unknown`.
    """
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **tokenizer.special,
    }
    if tokenizer.chat_template is not None:
        tokenizer_config["chat_template"] = tokenizer.chat_template
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    generation = {"eos_token_id": list(tokenizer.eos_token_ids), **hf_generation_config(tokenizer.sampling)}
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "generation_config.json", generation)
    (folder / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
    if tokenizer.tool_template is not None:
        # Where transformers looks for templates besides the default one.
        path = folder / TOOL_TEMPLATE
        path.parent.mkdir()
        path.write_text(tokenizer.tool_template, encoding="utf-8")
    for name, contents in tokenizer.extra.items():
        (folder / Path(name).name).write_bytes(contents)
    if not (folder / "LICENSE").exists():
        (folder / "LICENSE").write_text(_licence_text(licence), encoding="utf-8")


def _licence_text(licence: str) -> str:
    """The licence text for Apache-2.0, which requires it and is edgekit's own; else the identifier."""
    line = f"SPDX-License-Identifier: {licence}\n"
    if licence != "Apache-2.0":
        return line
    try:
        return distribution("edgekit-llm").read_text("licenses/LICENSE") or line
    except PackageNotFoundError:
        return line


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
