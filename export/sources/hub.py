"""Downloads the files of a checkpoint that edgekit reads from the Hugging Face hub, with `huggingface_hub`.

The library's environment variables set token, cache folder, mirror and offline mode.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.hf_folder import ALLOW_PATTERNS
from edgekit.export.progress import Report

__all__ = [
    "WEIGHTS",
    "Listing",
    "download",
    "download_error",
    "download_files",
    "download_small",
    "is_wanted",
    "list_files",
    "no_checkpoint",
]

WEIGHTS = "*.safetensors"
"""Pattern of the files that hold weights."""

# Other forms of the same weights: in folders (`original/`, `onnx/`), and beside the model in Mistral's own layout.
_IGNORE_PATTERNS = ("*/*.safetensors", "consolidated*.safetensors")
_ATTEMPTS = 5
# requests' and httpx's errors: the library uses one or the other.
_BROKEN = {"ChunkedEncodingError", "RemoteProtocolError"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository.

    Attributes:
        commit: The commit.
        names: Their paths, sorted.
        cached: Whether these are only the files in the library's cache, because the hub cannot be reached.
    """

    commit: str
    names: tuple[str, ...]
    cached: bool = False


def download(hub_id: str, revision: str | None, report: Report) -> Path:
    """Download a checkpoint in Hugging Face's layout, or find it in the library's cache.

    Args:
        hub_id: `org/name`.
        revision: Branch, tag or commit; None is the default branch.
        report: Receives `("download org/name", files done, files)`.

    Returns:
        The folder, named after its commit. It lacks files that the repository lacks.

    Raises:
        ExportError: It does not exist, needs a token, or cannot be reached; the hint says what to do.
    """
    return _snapshot(hub_id, revision, ALLOW_PATTERNS, _IGNORE_PATTERNS, report)


def download_small(hub_id: str, revision: str | None, report: Report) -> Path:
    """Download a checkpoint's files except for its weights; see `download`."""
    return _snapshot(hub_id, revision, ALLOW_PATTERNS, (*_IGNORE_PATTERNS, WEIGHTS), report)


def download_files(hub_id: str, revision: str | None, names: Sequence[str], report: Report) -> Path:
    """Download some files of a repository; see `download`."""
    # The library takes patterns, in which a bracket opens a set of characters.
    return _snapshot(hub_id, revision, [re.sub(r"([\[*?])", r"[\1]", name) for name in names], (), report)


def is_wanted(name: str) -> bool:
    """Whether `download` fetches a file."""
    return any(fnmatch(name, pattern) for pattern in ALLOW_PATTERNS) and not any(
        fnmatch(name, pattern) for pattern in _IGNORE_PATTERNS
    )


def list_files(hub_id: str, revision: str | None) -> Listing:
    """List the files of a repository; without a network, those in the library's cache.

    Raises:
        ExportError: As for `download`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(hub_id, revision=revision)
    except Exception as error:
        folder = None if isinstance(error, HfHubHTTPError) else _cached_snapshot(hub_id, revision)
        if folder is None:
            raise download_error(hub_id, revision, error) from error
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return Listing(folder.name, tuple(sorted(names)), cached=True)
    return Listing(str(info.sha), tuple(sorted(file.rfilename for file in info.siblings or ())))


def _snapshot(hub_id: str, revision: str | None, allow: Sequence[str], ignore: Sequence[str], report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # progress goes through `report`; the library would write to stderr
    if "HF_HUB_VERBOSITY" not in os.environ:
        set_verbosity(logging.ERROR)  # an interrupted download that resumes is not worth a warning
    attempt = 1
    while True:
        try:
            return Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    allow_patterns=list(allow),
                    ignore_patterns=list(ignore),
                    tqdm_class=_reporting(hub_id, report),
                )
            )
        except Exception as error:  # noqa: PERF203  a network is slower
            # Before 1.20 the library gives up when a connection breaks, but resumes when it is asked again.
            if attempt == _ATTEMPTS or type(error).__name__ not in _BROKEN:
                raise download_error(hub_id, revision, error) from error
            attempt += 1


def _cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a commit in the library's cache, complete or not, by the cache's documented layout."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = repository / "snapshots" / (commit or "")
    return folder if commit and folder.is_dir() else None


def no_checkpoint(hub_id: str) -> ExportError:
    """Return the error for a repository that has none of the forms of a checkpoint."""
    return ExportError(
        f"{hub_id} has no config.json", hint="edgekit reads config.json with safetensors, or GGUF files; is it a model?"
    )


def _reporting(hub_id: str, report: Report) -> Any:
    """The library's progress bar, reporting instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self._counts_files = kwargs.get("unit") != "B"
            self._files_total = kwargs.get("total") or (len(args[0]) if args and hasattr(args[0], "__len__") else None)
            self._files_done = 0

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_files:
                self._files_done += int(n or 0)
                report(f"download {hub_id}", self._files_done, self._files_total)
            return None

    return Bar


def download_error(hub_id: str, revision: str | None, error: Exception) -> ExportError:
    """Return the error for a repository that cannot be read."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ExportError(
            f"{hub_id} is gated: its terms must be accepted first",
            hint="accept them on its hub page, then set HF_TOKEN to your token",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ExportError(f"{hub_id} has no revision `{revision}`", hint="it is a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ExportError(
            f"the hub has no model {hub_id}, or it is private", hint="check its spelling; set HF_TOKEN if it is private"
        )
    if isinstance(error, OSError) and error.errno == 28:
        return ExportError(
            f"no space left on the disk for {hub_id}", hint="set HF_HOME to another folder for downloads"
        )
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return ExportError(
        f"{hub_id} cannot be downloaded: {reason}",
        hint="check the network (HF_ENDPOINT sets a mirror), or use a folder or a GGUF file instead",
        code="download_failed",
    )
