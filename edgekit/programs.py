"""Runs a small program of the system and returns its output."""

from __future__ import annotations

import shutil
import subprocess

__all__ = ["output_of"]


def output_of(*command: str, timeout_s: float = 10.0) -> str:
    """Return the program's output; an empty string if it is missing, fails or takes too long.

    Args:
        command: The program's name and its arguments.
        timeout_s: It is ended after this time, in seconds.
    """
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)  # noqa: S603 - fixed commands
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
