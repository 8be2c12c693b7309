"""Opens a checkpoint of the hub without its weights, so that everything but their values is known before a download.

The small files are downloaded. Of a file with weights only the header is; the rest of the local file is a hole, which
reads as zeros. The readers open such a folder like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatch
from http.client import HTTPException
from math import prod
from pathlib import Path
from urllib.request import Request

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import BoundedFile
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.checkpoints.gguf.container import Container, read_container
from edgekit.export.checkpoints.gguf.names import is_rope_table
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.progress import Report
from edgekit.export.sources.download import open_url
from edgekit.export.sources.gguf_files import choose_gguf
from edgekit.export.sources.hub import WEIGHTS, download_error, download_small, is_wanted, list_files, no_checkpoint
from edgekit.export.sources.hub_ref import HubRef

__all__ = ["opened_outline"]

_FIRST = 1 << 18
# A GGUF header holds the vocabulary.
_FIRST_GGUF, _MAX_GGUF_HEADER = 1 << 22, 1 << 27
_MAX_HEADER = 1 << 25


@contextmanager
def opened_outline(
    ref: HubRef, report: Report, *, name: str | None = None, licence: str | None = None
) -> Iterator[FolderCheckpoint | GgufCheckpoint]:
    """Open a checkpoint of the hub whose weights read as zeros unless they were downloaded before.

    Args:
        ref: The model.
        report: Receives progress.
        name: The model's name; None takes the repository's or the file's.
        licence: SPDX identifier; None takes the checkpoint's own.

    Raises:
        ExportError: It cannot be read or reached; also for any error of the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit.") as temporary:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        try:
            with closing(_open(ref, folder, report, name, licence)) as checkpoint:
                yield checkpoint
        except ExportError as error:
            raise error.renamed(str(folder), ref.id) from error


def _open(
    ref: HubRef, folder: Path, report: Report, name: str | None, licence: str | None
) -> FolderCheckpoint | GgufCheckpoint:
    if ref.file is None and ref.tag is None:
        small = download_small(ref.id, ref.revision, report)
        if (small / "config.json").is_file():
            _write_folder(ref, small, folder, report)
            return FolderCheckpoint(folder, name=name or ref.name, identity=f"{ref.id}@{small.name}", licence=licence)
    listing = list_files(ref.id, ref.revision)
    files = choose_gguf(ref.id, listing.names, tag=ref.tag, file=ref.file)
    if files is None:
        raise no_checkpoint(ref.id)
    remote = _Remote(ref.id, listing.commit, folder)
    for number, file in enumerate(files):
        report(f"read headers of {ref.id}", number, len(files))
        _write_gguf_header(remote, file)
    first = folder / files[0].rpartition("/")[2]
    identity = f"{ref.id}@{listing.commit}:{files[0]}"
    return GgufCheckpoint(first, name=name, identity=identity, licence=licence)


def _write_folder(ref: HubRef, small: Path, folder: Path, report: Report) -> None:
    """Write a checkpoint's small files, and the headers of its weights, into a local folder."""
    commit = small.name
    for path in small.iterdir():
        (folder / path.name).symlink_to(path)
    remote = _Remote(ref.id, commit, folder)
    listing = list_files(ref.id, commit)
    names = listing.names
    weights = [file for file in names if is_wanted(file) and fnmatch(file, WEIGHTS) and not (folder / file).exists()]
    if listing.cached and not any(fnmatch(file, WEIGHTS) for file in names):
        raise ExportError(
            f"{ref.id} cannot be downloaded: its weights are not in the cache, and the hub cannot be reached",
            hint="check the network (HF_ENDPOINT sets a mirror, HF_HUB_OFFLINE turns it off)",
            code="download_failed",
        )
    # Refused by their names, so that nothing more is fetched.
    for file in names:
        if file.endswith((".bin", ".pt", ".pth")) and "/" not in file:
            (folder / file).touch()
    for number, file in enumerate(weights):
        report(f"read headers of {ref.id}", number, len(weights))
        _write_safetensors_header(remote, file)


class _Remote:
    """Files of a commit, read in part into a local folder.

    Args:
        hub_id: `org/name`.
        commit: The commit.
        folder: The local folder.
    """

    def __init__(self, hub_id: str, commit: str, folder: Path) -> None:
        self._hub_id = hub_id
        self._commit = commit
        self._folder = folder

    def path(self, name: str) -> Path:
        """The local file of a remote one."""
        return self._folder / name.rpartition("/")[2]

    def cached(self, name: str) -> bool:
        """Whether the file was downloaded before; then it is linked."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._hub_id, name, revision=self._commit)
        if not isinstance(found, str):
            return False
        self.path(name).symlink_to(found)
        return True

    def fetch(self, name: str, start: int, length: int) -> bytes:
        """Fetch some bytes into the local file, which gets the size of the remote one.

        Returns:
            The bytes; fewer where the file ends.

        Raises:
            ExportError: It cannot be reached.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        request = Request(hf_hub_url(self._hub_id, name, revision=self._commit))  # noqa: S310  the hub's address
        for key, value in build_hf_headers().items():
            # Not passed on where the hub redirects to: another host must not see the token.
            request.add_unredirected_header(key, value)
        request.add_header("Range", f"bytes={start}-{start + length - 1}")
        request.add_header("Accept-Encoding", "identity")
        try:
            with open_url(request) as response:
                partial = response.status == 206
                if not partial and start:
                    response.read(start)  # the server sends it all
                data: bytes = response.read(length)
                stated = response.headers.get("Content-Range" if partial else "Content-Length", "")
        except (OSError, HTTPException) as error:
            raise download_error(self._hub_id, self._commit, error) from error
        size = stated.rpartition("/")[2]
        if not size.isdecimal():
            raise download_error(
                self._hub_id, self._commit, ValueError(f"the server does not state the size of {name}")
            )
        with self.path(name).open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(data)
            stream.truncate(max(int(size), start + len(data)))
        return data


def _write_safetensors_header(remote: _Remote, name: str) -> None:
    data = remote.fetch(name, 0, _FIRST)
    length = int.from_bytes(data[:8], "little")
    if len(data) == _FIRST and _FIRST < 8 + length <= _MAX_HEADER:
        remote.fetch(name, _FIRST, 8 + length - _FIRST)


def _write_gguf_header(remote: _Remote, name: str) -> None:
    if remote.cached(name):
        return
    done = len(remote.fetch(name, 0, _FIRST_GGUF))
    while True:
        container = _container(remote.path(name))
        # Zeros may have been taken for a part of the header; data within what was fetched follow its end.
        if container is not None and min((tensor.offset for tensor in container.tensors), default=0) <= done:
            break
        more = b"" if done >= _MAX_GGUF_HEADER else remote.fetch(name, done, done)
        if not more:
            return  # it is damaged: opening it says so
        done += len(more)
    for tensor in container.tensors:
        if is_rope_table(tensor.name) and tensor.offset + 4 * prod(tensor.shape) > done:
            remote.fetch(name, tensor.offset, 4 * prod(tensor.shape))


def _container(path: Path) -> Container | None:
    file = BoundedFile(path)
    try:
        return read_container(file)
    except ExportError:
        return None
    finally:
        file.close()
