"""Standard streams that are closed, full, or in an encoding that lacks characters."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from edgekit.errors import ConfigError, EdgekitError
from edgekit.machine import cache_folder

__all__ = ["discard_output", "flush_output", "prepare_streams", "system_error"]


def prepare_streams() -> None:
    """Replace what is missing: closed streams by /dev/null, unknown characters by `?`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest free number is this stream's own: otherwise the next file opened would take its place.
            descriptor = os.open(os.devnull, os.O_RDWR)
            if number:
                setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if encoding.lower().replace("-", "") != "utf8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def flush_output() -> None:
    """Write what is buffered.

    Raises:
        OSError: It cannot be written.
    """
    if not sys.stdout.closed:
        sys.stdout.flush()


def discard_output() -> None:
    """Drop what cannot be written, so that the interpreter does not try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def system_error(error: OSError) -> EdgekitError:
    """Return the error for a file or stream that the system refuses."""
    reason = error.strerror or str(error)
    if error.filename is None:
        full = "free some space, or write to another file" if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
        return EdgekitError(f"cannot write the output: {reason}", hint=full)
    hint = None
    with contextlib.suppress(ConfigError):
        if Path(os.fsdecode(error.filename)).is_relative_to(cache_folder()):
            hint = "choose another folder for downloads: export EDGEKIT_CACHE=FOLDER"
    return EdgekitError(f"{os.fsdecode(error.filename)}: {reason}", hint=hint)
