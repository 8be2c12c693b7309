"""The catalogue's corrections to a checkpoint. A file of its own, so that listing models loads no reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TextFixes"]


@dataclass(frozen=True, slots=True)
class TextFixes:
    """Corrections to a checkpoint's chat template and special tokens.

    Attributes:
        replace: Strings in the chat template, and their replacements.
        template_sha256: SHA-256 of the corrected template; None does not check.
        special: `bos_token` and so on; None removes it.
        eos_tokens: All tokens that end an answer; empty keeps those found.
    """

    replace: tuple[tuple[str, str], ...] = ()
    template_sha256: str | None = None
    special: Mapping[str, str | None] = field(default_factory=dict)
    eos_tokens: tuple[str, ...] = ()
