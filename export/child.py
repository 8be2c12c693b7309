"""Asks a program of ours in a process of its own: a request as JSON in a file, and a reply in another.

For work in native code that may crash, or in another Python. It knows neither what is asked nor what is answered.
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
    who: str,
    hint: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Run a program and return its reply.

    Args:
        command: What to run; the paths of the request and of the reply are added to it.
        request: The request.
        folder: For the two files.
        who: What the user is to call the program, `TensorRT's builder`.
        hint: For a user whose child crashed.
        env: Environment; None passes ours on.
        timeout_s: After that it is killed; None waits.

    Raises:
        ExportError: It left no reply, or took too long.
        OSError: It cannot be started.
    """
    question, reply = folder / "request.json", folder / "reply.json"
    question.write_text(json.dumps(request), encoding="utf-8")
    try:
        done = subprocess.run(  # noqa: S603  the caller's own program
            [*command, str(question), str(reply)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=None if env is None else dict(env),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{who} did not finish within {timeout_s:g} s") from error
    if not reply.exists():
        last = done.stderr.decode(errors="replace").strip().splitlines()
        why = f"signal {-done.returncode}" if done.returncode < 0 else (last[-1] if last else "no reason given")
        raise ExportError(f"{who} crashed ({why})", hint=hint)
    return dict(json.loads(reply.read_text(encoding="utf-8")))
