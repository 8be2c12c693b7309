"""What a model is calibrated on: windows of a text, chosen at random.

The default text is the language reference that every Python carries (`pydoc_data.topics`): English prose with some
code, at hand without a network. It does not know models or recipes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConfigError
from edgekit.export.windows import Text, cut_windows, read_text

__all__ = [
    "CALIBRATION_LENGTH",
    "CALIBRATION_WINDOWS",
    "FEW_WINDOWS",
    "Calibration",
    "calibration_text",
    "choose_windows",
]

# Windows to choose from: of a longer text the rest is not read.
_MOST = 1024
CALIBRATION_LENGTH = 512
"""Tokens per window."""
CALIBRATION_WINDOWS = 32
"""Windows, where the user does not say and correlations of inputs are wanted: gptq."""
FEW_WINDOWS = 2
"""Windows, where only the size of inputs is wanted: awq. More make nothing better (docs/decisions/0014)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Windows of tokens and where they come from.

    Attributes:
        ids: Token ids, int64 `[windows, tokens]`.
        text: The text.
    """

    ids: npt.NDArray[np.int64]
    text: Text

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        windows, tokens = self.ids.shape
        return {
            "text": self.text.name,
            "sha256": self.text.sha256,
            "windows": windows,
            "tokens_per_window": tokens,
        }


def calibration_text(path: Path | None) -> Text:
    """Read the text to calibrate on.

    Args:
        path: A UTF-8 file; None takes the default text.

    Raises:
        ConfigError: The file cannot be read, or is not UTF-8; or this Python lacks its language reference.
    """
    if path is not None:
        return read_text(path)
    try:
        topics = import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "this Python comes without its language reference, the default text to calibrate on",
            hint="name a text with --calibration FILE",
        ) from error
    contents = "\n\n".join(topics[name] for name in sorted(topics))
    return Text("the Python language reference", hashlib.sha256(contents.encode()).hexdigest(), contents)


def choose_windows(
    tokenizer_json: bytes,
    text: Text,
    *,
    windows: int = CALIBRATION_WINDOWS,
    length: int = CALIBRATION_LENGTH,
    seed: int = 0,
) -> Calibration:
    """Choose windows of a text at random.

    Args:
        tokenizer_json: Contents of the model's `tokenizer.json`.
        text: What to calibrate on.
        windows: How many at most; a short text gives fewer.
        length: Tokens per window.
        seed: Of the choice.

    Raises:
        ConfigError: The text has hardly any tokens.
        ExportError: The tokenizer is damaged.
    """
    ids = cut_windows(tokenizer_json, text, length=length, count=_MOST).ids
    chosen = np.sort(np.random.default_rng(seed).permutation(len(ids))[:windows])
    return Calibration(ids=ids[chosen], text=text)
