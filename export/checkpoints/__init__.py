"""Checkpoint readers, one file per format. They yield tensors lazily and know no target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError, ExportError, nearest
from edgekit.export.progress import Report, silent

if TYPE_CHECKING:  # readers are imported when one is opened: listing the catalogue needs none of their libraries
    from edgekit.export.checkpoints.base import Checkpoint

__all__ = ["open_checkpoint"]


def open_checkpoint(ref: str | os.PathLike[str], *, revision: str | None = None, report: Report = silent) -> Checkpoint:
    """Open a checkpoint, whatever it is; close it when done.

    Args:
        ref: A name of `edgekit models`, a `.gguf` file (any part of a split one), a folder with either that or
            `config.json` and safetensors, or a hub id. A name of the catalogue goes before a file of that name;
            `./name` means the file.
        revision: Branch, tag or commit of a hub id.
        report: Receives a stage, how much of it is done, and how much there is (None if unknown).

    Raises:
        ExportError: There is no such thing, or it cannot be fetched or read.
        ConfigError: A revision was given for something that has none.
    """
    from edgekit.export.catalog import find_entry
    from edgekit.export.checkpoints.hub import HUB_ID

    text = os.fspath(ref)
    if not text:
        raise _unknown(text)
    path = Path(text).expanduser()
    entry = find_entry(text) if isinstance(ref, str) else None
    if entry is not None:
        return entry.open(revision=revision, report=report)
    if path.exists():
        _no_revision(revision, text)
        return _open_path(path)
    if HUB_ID.fullmatch(text) and isinstance(ref, str):
        return open_hub(text, revision=revision, report=report)
    raise _unknown(text)


def open_hub(
    hub_id: str, *, revision: str | None = None, name: str | None = None, licence: str | None = None, report: Report
) -> Checkpoint:
    """Download a checkpoint of the hub, and open it."""
    from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
    from edgekit.export.checkpoints.hub import download

    folder, commit = download(hub_id, revision, report)
    return FolderCheckpoint(
        folder, name=name or hub_id.split("/")[1].lower(), identity=f"{hub_id}@{commit}", licence=licence
    )


def _open_path(path: Path) -> Checkpoint:
    from edgekit.export.checkpoints.gguf import GgufCheckpoint
    from edgekit.export.checkpoints.gguf_parts import one_model
    from edgekit.export.checkpoints.hf_folder import FolderCheckpoint

    if path.is_dir():
        files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
        if not files:
            return FolderCheckpoint(path)
        model = one_model(files)
        if model is None:
            raise ExportError(f"{path} holds several GGUF models", hint=f"name one: {files[0]}, for example")
        return GgufCheckpoint(model)
    if path.suffix.lower() == ".gguf":
        return GgufCheckpoint(path)
    if path.suffix == ".safetensors":
        raise ExportError(f"{path} is only a part of a checkpoint", hint=f"name its folder: {path.parent}")
    raise ExportError(f"{path} is no checkpoint", hint="a checkpoint is a .gguf file or a folder with config.json")


def _no_revision(revision: str | None, text: str) -> None:
    if revision is not None:
        raise ConfigError(f"{text} has no revisions", hint="--revision is for a hub id")


def _unknown(text: str) -> ExportError:
    from edgekit.export.catalog import catalog

    names = [entry.name for entry in catalog()]
    near = nearest(text.lower(), names)
    kinds = "a name of `edgekit models`, a .gguf file, a checkpoint folder, or a hub id like `org/name`"
    if text.endswith(".gguf") or text.startswith((".", "/", "~")):
        return ExportError(f"there is no file or folder {text}", hint=f"MODEL is {kinds}")
    return ExportError(
        f"unknown model `{text}`",
        hint=f"did you mean `{near}`?" if near else f"MODEL is {kinds}",
        code="unknown_model",
    )
