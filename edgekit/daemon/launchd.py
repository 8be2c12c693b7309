"""Whether launchd started this process."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

__all__ = ["is_launchd_job"]


def is_launchd_job(env: Mapping[str, str] | None = None, system: str | None = None) -> bool:
    """Return whether this is a launchd job, and not a program in a terminal.

    Args:
        env: The environment; the process's own unless given.
        system: `platform.system()` unless given.
    """
    name = (os.environ if env is None else env).get("XPC_SERVICE_NAME", "")
    # Programs in a terminal inherit "0" or the terminal's own name.
    return (system or platform.system()) == "Darwin" and name not in {"", "0"} and not name.startswith("application.")
