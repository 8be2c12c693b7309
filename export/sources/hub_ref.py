"""Reads the ways in which users name a model of the Hugging Face hub.

`org/name`, the address of its page or of one of its files, and the names that Ollama and llama.cpp take:
`hf.co/org/name:Q4_K_M` and `org/name:Q4_K_M`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edgekit.errors import ConfigError, ExportError, option

__all__ = ["HubRef", "hub_ref", "short_name"]

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(?::(?P<tag>[\w.-]{{1,200}}))?", re.ASCII)
_HOSTS = ("huggingface.co", "hf.co")
_FORMS = "`org/name`, `hf.co/org/name:Q4_K_M`, or the address of a model or of one of its files"
# Kinds of page below a model's address that name a revision.
_PAGES = ("tree", "blob", "resolve", "raw")


@dataclass(frozen=True, slots=True)
class HubRef:
    """A model on the hub.

    Attributes:
        id: `org/name`.
        revision: Branch, tag or commit; None is the default branch.
        file: Path of a GGUF file in the repository; None if none was named.
        tag: Quantization of a GGUF model, or its file's name; None if none was named.
    """

    id: str
    revision: str | None = None
    file: str | None = None
    tag: str | None = None

    @property
    def name(self) -> str:
        """A short model name: the repository's, in lower case."""
        return self.id.split("/")[1].lower()

    def at(self, revision: str | None) -> HubRef:
        """Return it at a revision that the user gave separately; None keeps its own.

        Raises:
            ConfigError: It names another one itself.
        """
        if revision is None or revision == self.revision:
            return self
        if self.revision is not None:
            raise ConfigError(
                f"the address names the revision `{self.revision}`, and {option('revision')} another",
                hint="give one of them",
            )
        return HubRef(self.id, revision, self.file, self.tag)


def hub_ref(text: str) -> HubRef | None:
    """Read the name of a model on the hub; None if the text has another form.

    Raises:
        ExportError: It is an address, but not of a model on the hub.
    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in {"http", "https", "hf"}:
        return _from_address(text, "" if scheme.lower() == "hf" else urlsplit(text).netloc.lower(), rest)
    host, _, path = text.partition("/")
    if host.lower().removeprefix("www.") in _hosts() and path:
        return _from_address(text, host.lower(), text)
    match = _ID.fullmatch(text)
    return None if match is None else HubRef(match["id"], tag=match["tag"])


def short_name(text: str) -> str:
    """Return a short name for a model, as a user named it: of a file, a folder, or a repository of the hub."""
    ref = None if os.path.exists(text) else hub_ref(text)  # noqa: PTH110  a name need not be a valid path
    last = text.rstrip("/").rpartition("/")[2] if ref is None else ref.name
    return last.lower().removesuffix(".gguf").removesuffix("-gguf")


def _hosts() -> tuple[str, ...]:
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    return (*_HOSTS, mirror) if mirror else _HOSTS


def _from_address(text: str, host: str, rest: str) -> HubRef:
    if host and host.removeprefix("www.") not in _hosts():
        raise ExportError(
            f"{text} is not an address of the Hugging Face hub",
            hint=f"a model of the hub is {_FORMS}; HF_ENDPOINT names a mirror. Download files of other sites first",
            code="unknown_model",
        )
    path = rest.partition("?")[0].partition("#")[0]
    parts = [part for part in path.split("/") if part]
    if host:
        parts = parts[1:]
    if parts[:1] == ["models"]:
        parts = parts[1:]
    match = (
        _ID.fullmatch(unquote("/".join(parts[:2]))) if parts[:1] != ["datasets"] and parts[:1] != ["spaces"] else None
    )
    more = [unquote(part) for part in parts[2:]]
    if match is None or (more and more[0] not in _PAGES):
        raise ExportError(
            f"{text} is not the address of a model", hint=f"a model of the hub is {_FORMS}", code="unknown_model"
        )
    revision = more[1] if len(more) > 1 else None
    file = "/".join(more[2:]) or None
    if file is None or file in {"config.json", "model.safetensors"}:
        return HubRef(match["id"], revision, tag=match["tag"])
    if file.lower().endswith(".gguf"):
        return HubRef(match["id"], revision, file=file)
    raise ExportError(
        f"{file} of {match['id']} is not a checkpoint",
        hint=f"name the model, {match['id']}, or one of its GGUF files",
    )
