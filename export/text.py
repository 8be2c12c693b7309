"""The text side of a bundle, under the file names Hugging Face uses, so that its tools open the folder too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenizers import Tokenizer

from edgekit.errors import EdgekitError, ExportError
from edgekit.export.checkpoints.base import TokenizerFiles

__all__ = ["check_text", "check_tokens", "read_tokenizer", "write_text_files"]


def check_text(tokenizer: TokenizerFiles) -> None:
    """Refuse a text side that no chat can be had with, before any work is done.

    Raises:
        ExportError: There is no chat template, or it is not valid.
    """
    from edgekit.generation.template import ChatTemplate

    if tokenizer.chat_template is None:
        raise ExportError(
            "the checkpoint has no chat template, so it cannot answer a chat",
            hint="export the -Instruct variant of the model",
        )
    try:
        ChatTemplate(tokenizer.chat_template)
    except EdgekitError as error:
        raise ExportError(f"the checkpoint cannot be chatted with: {error.message}", hint=error.hint) from error


def read_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Read the contents of a `tokenizer.json`.

    Raises:
        ExportError: They are no tokenizer.
    """
    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"tokenizer.json is not a tokenizer: {' '.join(str(error).split())[:200]}") from error


def check_tokens(tokenizer: TokenizerFiles, vocab_size: int) -> None:
    """Refuse a tokenizer that speaks of tokens which the model does not know.

    An added token beyond the model's vocabulary is nothing to refuse by itself (Gemma 3's `<image_soft_token>` is one):
    only one that every chat begins with, or that ends an answer.

    Args:
        tokenizer: The checkpoint's text side, with a chat template.
        vocab_size: Tokens that the model knows.

    Raises:
        ExportError: `tokenizer.json` is not a tokenizer, or another model's; or a chat could not begin or end.
    """
    backend = read_tokenizer(tokenizer.tokenizer_json)
    if min(tokenizer.eos_token_ids) >= vocab_size:
        raise ExportError(
            f"no answer would end: the checkpoint ends one with token {min(tokenizer.eos_token_ids)}, and the model "
            f"has {vocab_size}",
            hint="set eos_token_id in generation_config.json",
        )
    added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    largest = max((number for text, number in backend.get_vocab().items() if text not in added), default=0)
    if largest >= vocab_size:
        raise ExportError(
            f"the tokenizer has a token {largest}, and the model {vocab_size} tokens: it is another model's",
            hint="put the model's own tokenizer.json beside its weights",
        )
    template = tokenizer.chat_template or ""
    written = [template, *(text for name, text in tokenizer.special.items() if name in template)]
    for text, number in added.items():
        if number >= vocab_size and any(text in part for part in written):
            raise ExportError(
                f"the chat template writes `{text}`, token {number}, and the model has {vocab_size} tokens",
                hint="resize the embedding to the tokenizer's length before the model is saved, or mend the template",
            )


def write_text_files(
    folder: Path, config: Mapping[str, object], tokenizer: TokenizerFiles, context_length: int, *, licence: str
) -> None:
    """Write configuration, tokenizer, chat template and licence.

    Args:
        folder: The bundle's folder.
        config: The artifact's `config.json`.
        tokenizer: The checkpoint's text side, checked.
        context_length: Longest sequence in tokens.
        licence: SPDX identifier of the weights, or `unknown`.
    """
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **tokenizer.special,
        "chat_template": tokenizer.chat_template,
    }
    generation = {"eos_token_id": list(tokenizer.eos_token_ids)}
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "generation_config.json", generation)
    (folder / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template or "", encoding="utf-8")
    for name, contents in tokenizer.extra.items():
        (folder / Path(name).name).write_bytes(contents)
    if not (folder / "LICENSE").exists():
        (folder / "LICENSE").write_text(_licence_text(licence), encoding="utf-8")


def _licence_text(licence: str) -> str:
    """The text of the licence where we carry it (Apache-2.0, our own, asks for that), else its identifier."""
    line = f"SPDX-License-Identifier: {licence}\n"
    if licence != "Apache-2.0":
        return line
    try:
        return distribution("edgekit").read_text("licenses/LICENSE") or line
    except PackageNotFoundError:
        return line


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
