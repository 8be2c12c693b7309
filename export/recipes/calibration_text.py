"""The calibration data: randomly chosen windows of a text.

The default text is the language reference included with Python (`pydoc_data.topics`): English prose with some code,
available offline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConfigError, option
from edgekit.export.recipes.token_windows import Text, cut_windows, read_text

__all__ = [
    "CALIBRATION_LENGTH",
    "CALIBRATION_WINDOWS",
    "FEW_WINDOWS",
    "Calibration",
    "calibration_text",
    "choose_windows",
]

# Windows to choose from; the rest of a longer text is not read.
_MAX_WINDOWS = 1024
CALIBRATION_LENGTH = 512
"""Tokens per window."""
CALIBRATION_WINDOWS = 32
"""Default number of windows for gptq, which needs correlations of the inputs."""
FEW_WINDOWS = 2
"""Default for the rest: awq needs only the magnitudes of the inputs, and more windows do not improve it
(docs/decisions/0014)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Windows of tokens and their text.

    Attributes:
        ids: Token ids, int64 `[windows, tokens]`.
        text: The text they were chosen from.
    """

    ids: npt.NDArray[np.int64]
    text: Text

    def as_dict(self) -> dict[str, object]:
        """Return the manifest's entry."""
        windows, tokens = self.ids.shape
        return {
            "text": self.text.name,
            "sha256": self.text.sha256,
            "windows": windows,
            "tokens_per_window": tokens,
        }


def calibration_text(path: Path | None) -> Text:
    """Read the calibration text.

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
            "this Python lacks its language reference, the default calibration text",
            hint=f"give a text with {option('calibrate_on')}",
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
        text: The calibration text.
        windows: Maximum number of windows; a short text gives fewer.
        length: Tokens per window.
        seed: Of the random choice.

    Raises:
        ConfigError: The text has too few tokens.
        ExportError: The tokenizer is damaged.
    """
    ids = cut_windows(tokenizer_json, text, length=length, count=_MAX_WINDOWS).ids
    chosen = np.sort(np.random.default_rng(seed).permutation(len(ids))[:windows])
    return Calibration(ids=ids[chosen], text=text)
