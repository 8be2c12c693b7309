"""A checkpoint of the Hugging Face hub, through `huggingface_hub`: only the files that are read are downloaded.

Token, cache folder, mirror and offline mode are the library's, from its environment variables.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checkpoints.hf_folder import WANTED
from edgekit.export.progress import Report

__all__ = ["HUB_ID", "download", "fetch_config"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""What a hub id looks like: `org/name`."""

# Other forms of the same weights: in folders (`original/`, `onnx/`), and beside the model in Mistral's own layout.
_UNWANTED = ("*/*", "consolidated*.safetensors")


def download(hub_id: str, revision: str | None, report: Report) -> tuple[Path, str]:
    """Download a checkpoint, or find it in the library's cache.

    Args:
        hub_id: `org/name`.
        revision: Branch, tag or commit; None is the default branch.
        report: Receives `("download org/name", files done, files)`.

    Returns:
        The folder, and the commit it is of.

    Raises:
        ExportError: It does not exist, needs a token, or cannot be reached; with what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # progress goes through `report`; the library would write to stderr
    if "HF_HUB_VERBOSITY" not in os.environ:
        set_verbosity(logging.ERROR)  # a download that breaks off and goes on is no news
    try:
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(WANTED),
                ignore_patterns=list(_UNWANTED),
                tqdm_class=_reporting(hub_id, report),
            )
        )
    except Exception as error:
        raise _explained(hub_id, revision, error) from error
    if not (folder / "config.json").exists():
        raise ExportError(
            f"{hub_id} has no config.json",
            hint="is it a repository of GGUF files? Download one, and name the file instead",
        )
    return folder, folder.name


def fetch_config(hub_id: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Fetch a checkpoint's `config.json` and nothing else, or find it in the library's cache.

    Args:
        hub_id: `org/name`.
        revision: Branch, tag or commit; None is the default branch.

    Returns:
        Its contents, and the commit it is of.

    Raises:
        ExportError: As for `download`, or it is not JSON.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=["config.json"]))
    except Exception as error:
        raise _explained(hub_id, revision, error) from error
    if not (folder / "config.json").is_file():
        raise ExportError(f"{hub_id} has no config.json", hint="does it hold GGUF files? give one of them instead")
    return read_json(folder / "config.json"), folder.name


def _reporting(hub_id: str, report: Report) -> Any:
    """The library's progress bar, made to report instead of draw."""
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


def _explained(hub_id: str, revision: str | None, error: Exception) -> ExportError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ExportError(
            f"{hub_id} is only for those who accepted its terms",
            hint="accept them on its hub page, then set HF_TOKEN to a token of yours",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ExportError(f"{hub_id} has no revision `{revision}`", hint="it is a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ExportError(
            f"the hub has no model {hub_id}, or it is private", hint="check its spelling; set HF_TOKEN if it is private"
        )
    if isinstance(error, OSError) and error.errno == 28:
        return ExportError(f"no room on the disk for {hub_id}", hint="HF_HOME names another place for downloads")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return ExportError(
        f"{hub_id} cannot be downloaded: {reason}",
        hint="check the network (HF_ENDPOINT names a mirror), or give a folder or a GGUF file instead",
        code="download_failed",
    )
