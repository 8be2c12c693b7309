"""Runs client libraries in an environment of their own: see `requirements.txt`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ClientPython"]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
VARIABLE = "EDGEKIT_CLIENTS_PYTHON"

ClientPython = Callable[..., Any]
"""Runs `programs/NAME.py ARGUMENTS…` and returns what it prints, which is JSON."""


@pytest.fixture(scope="session")
def clients_interpreter() -> Path:
    """The Python that has the client libraries; the test is skipped without one."""
    python = Path(os.environ.get(VARIABLE) or ROOT / ".venv-clients" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no client libraries: scripts/test installs them, or set {VARIABLE}")
    return python


@pytest.fixture(scope="session")
def client_python(clients_interpreter: Path) -> ClientPython:
    """Runs one of the programs; see `ClientPython`."""

    def run(program: str, *arguments: object) -> Any:
        done = subprocess.run(
            # -I: not with this environment's packages.
            [clients_interpreter, "-I", PROGRAMS / f"{program}.py", *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{program} exited with {done.returncode}:\n{done.stderr[-6000:]}"
        return json.loads(done.stdout)

    return run
