"""Runs one of our programs in a child process, with request and reply as JSON files.

For native code that may crash, or that needs another Python.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import ExportError

__all__ = ["ask_child"]


def ask_child(
    command: Sequence[str],
    request: Mapping[str, object],
    folder: Path,
    *,
    program: str,
    hint: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Run a program and return its reply.

    Args:
        command: The command line; the paths of the request and reply files are appended.
        request: The request.
        folder: Where to put the two files.
        program: The program's name in error messages, such as `TensorRT's builder`.
        hint: Shown if the program crashes.
        env: Environment; None inherits ours.
        timeout_s: Kill the program after this time; None waits forever.

    Raises:
        ExportError: The program wrote no reply or timed out.
        OSError: It cannot be started.
    """
    request_file, reply_file = folder / "request.json", folder / "reply.json"
    request_file.write_text(json.dumps(request), encoding="utf-8")
    try:
        done = subprocess.run(  # noqa: S603  the caller's own program
            [*command, str(request_file), str(reply_file)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=None if env is None else dict(env),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{program} did not finish within {timeout_s:g} s") from error
    if not reply_file.exists():
        last = done.stderr.decode(errors="replace").strip().splitlines()
        why = f"signal {-done.returncode}" if done.returncode < 0 else (last[-1] if last else "no reason given")
        raise ExportError(f"{program} crashed ({why})", hint=hint)
    return dict(json.loads(reply_file.read_text(encoding="utf-8")))
