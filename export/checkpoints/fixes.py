"""What a catalogue knows better than a file. Apart, so that listing models loads no reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TextFixes"]


@dataclass(frozen=True, slots=True)
class TextFixes:
    """Corrections of a checkpoint's text side.

    Attributes:
        replace: Texts of the chat template and what stands in their place.
        template_sha256: What the template must hash to afterwards; None does not check.
        special: `bos_token` and so on; None removes it.
        eos_tokens: Texts of all tokens that end an answer; empty keeps those found.
    """

    replace: tuple[tuple[str, str], ...] = ()
    template_sha256: str | None = None
    special: Mapping[str, str | None] = field(default_factory=dict)
    eos_tokens: tuple[str, ...] = ()
