"""Cuts a text into windows of tokens, for evaluation and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ConfigError
from edgekit.export.checkpoints.tokenizer_files import read_tokenizer

__all__ = ["Text", "Windows", "cut_windows", "read_text"]

# An upper bound for ordinary text with any tokenizer.
_CHARACTERS_PER_TOKEN = 16
_MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its file.

    Attributes:
        name: The file's name.
        sha256: SHA-256 of the file.
        contents: The text.
    """

    name: str
    sha256: str
    contents: str


@dataclass(frozen=True, slots=True)
class Windows:
    """Tokens of a text.

    Attributes:
        ids: int64 `[windows, tokens]`; each row starts with the tokenizer's prefix, such as a BOS token, if it has one.
        prefix_length: Number of prefix tokens per row, which are not part of the text.
    """

    ids: npt.NDArray[np.int64]
    prefix_length: int


def read_text(path: Path) -> Text:
    """Read a text file.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        _, sha256 = hash_file(path)
        return Text(path.name, sha256, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="give a plain text file") from error


def cut_windows(tokenizer_json: bytes, text: Text, *, length: int, count: int) -> Windows:
    """Cut the first `count` windows out of a text.

    Special tokens in the text are treated as plain text. A short text gives fewer windows; one shorter than a single
    window gives one window of the text's length.

    Args:
        tokenizer_json: Contents of `tokenizer.json`.
        text: The text.
        length: Tokens per window.
        count: Maximum number of windows.

    Raises:
        ConfigError: The text has too few tokens, or the window is too short.
        ExportError: The tokenizer is damaged.
    """
    if length < _MIN_TOKENS or count < 1:
        raise ConfigError(
            f"{count} windows of {length} tokens are too few", hint="use 8 windows of 512 tokens, or more"
        )
    tokenizer = read_tokenizer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    prefix = _prefix(tokenizer)
    step = length - len(prefix)
    ids = tokenizer.encode(text.contents[: step * count * _CHARACTERS_PER_TOKEN], add_special_tokens=False).ids
    if len(ids) < _MIN_TOKENS:
        raise ConfigError(f"{text.name} has only {len(ids)} tokens", hint="use a few pages of text, about 20 KB")
    step = min(step, len(ids))
    windows = min(count, len(ids) // step)
    cut = np.array(ids[: windows * step], np.int64).reshape(windows, step)
    prefixes = np.tile(np.array(prefix, np.int64), (windows, 1))
    return Windows(np.concatenate([prefixes, cut], axis=1), len(prefix))


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that the tokenizer prepends to a text."""
    with_special = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return list(with_special[:start])
    return []
