"""Text cut into windows of tokens, for measuring and for calibrating. It knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ConfigError
from edgekit.export.text import read_tokenizer

__all__ = ["Text", "Windows", "cut_windows", "read_text"]

# No tokenizer needs more characters for a token of ordinary text.
_CHARACTERS_PER_TOKEN = 16
_FEWEST = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it came from.

    Attributes:
        name: The file's name.
        sha256: Of the file.
        contents: The text.
    """

    name: str
    sha256: str
    contents: str


@dataclass(frozen=True, slots=True)
class Windows:
    """Tokens of a text.

    Attributes:
        ids: int64 `[windows, tokens]`; each row begins with what the tokenizer puts before every text, a BOS token
            say, if it puts anything.
        repeated: How many tokens of a row that is: they are not the text's.
    """

    ids: npt.NDArray[np.int64]
    repeated: int


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

    Special tokens in the text are taken as text. A text that is too short gives fewer windows, and one shorter than
    a single window gives that, as long as it is.

    Args:
        tokenizer_json: Contents of `tokenizer.json`.
        text: The text.
        length: Tokens per window.
        count: The most windows.

    Raises:
        ConfigError: The text has hardly any tokens, or the window is too short.
        ExportError: The tokenizer is damaged.
    """
    if length < _FEWEST or count < 1:
        raise ConfigError(f"{count} windows of {length} tokens are too little", hint="try --window 512 --windows 8")
    tokenizer = read_tokenizer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    prefix = _prefix(tokenizer)
    own = length - len(prefix)
    ids = tokenizer.encode(text.contents[: own * count * _CHARACTERS_PER_TOKEN], add_special_tokens=False).ids
    if len(ids) < _FEWEST:
        raise ConfigError(f"{text.name} has only {len(ids)} tokens", hint="a few pages of text are needed: some 20 KB")
    own = min(own, len(ids))
    windows = min(count, len(ids) // own)
    cut = np.array(ids[: windows * own], np.int64).reshape(windows, own)
    before = np.tile(np.array(prefix, np.int64), (windows, 1))
    return Windows(np.concatenate([before, cut], axis=1), len(prefix))


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    with_special = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return list(with_special[:start])
    return []
