"""Replaces a small file as a whole: no reader ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write to a temporary file beside it, sync that, and rename it: a crash leaves the old or the new content.

    The temporary file is a new one, so that neither another file nor the target of a link is overwritten.

    Args:
        path: The file, in an existing folder.
        data: Its new content.
        mode: Its permissions, whatever the process's umask is.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
