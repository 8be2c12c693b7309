"""Maps the licence names of Hugging Face and GGUF to SPDX identifiers."""

from __future__ import annotations

__all__ = ["spdx"]

_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "unlicense": "Unlicense",
}


def spdx(stated: object) -> str:
    """Return the SPDX identifier of a licence tag; a `LicenseRef-` for one that SPDX does not list.

    Args:
        stated: The checkpoint's value, of any type; an unusable one gives `unknown`.
    """
    if not isinstance(stated, str) or not stated.strip():
        return "unknown"
    tag = stated.strip().lower()
    if tag in {"other", "unknown"}:
        return "unknown"
    if tag in _SPDX:
        return _SPDX[tag]
    word = "".join(character if character.isalnum() or character in ".-" else "-" for character in tag[:60])
    return f"LicenseRef-{word}"
