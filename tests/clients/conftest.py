"""Runs client libraries in an environment of their own: see `requirements.txt` and `package.json`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.daemon.http.server import HttpServer

__all__ = ["ClientNode", "ClientPython", "ended"]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
VARIABLE = "EDGEKIT_CLIENTS_PYTHON"

ClientPython = Callable[..., Any]
"""Runs `programs/NAME.py ARGUMENTS…` and returns what it prints, which is JSON."""

ClientNode = Callable[..., Any]
"""Runs `programs/NAME.mjs ARGUMENTS…` with Node.js and returns what it prints, which is JSON."""


def ended(server: HttpServer, outcome: str) -> int:
    """Return how many requests of a daemon have ended with an outcome, by its own count."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    counts = [line for line in lines if line.startswith("edgekit_requests_total{") and f'outcome="{outcome}"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in counts)


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
        # -I: not with this environment's packages.
        return _json([clients_interpreter, "-I", PROGRAMS / f"{program}.py", *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def client_node(clients_interpreter: Path) -> ClientNode:
    """Runs one of the programs for Node.js; see `ClientNode`."""
    folder, own = clients_interpreter.parents[1] / "node", clients_interpreter.with_name("node")
    node = str(own) if own.exists() else shutil.which("node")
    if node is None or not (folder / "node_modules").is_dir():
        pytest.skip("no client libraries for Node.js: scripts/test installs them if it reaches a registry of npm")

    def run(program: str, *arguments: object) -> Any:
        # Node.js looks for libraries beside a program.
        copy = folder / f"{program}-{os.getpid()}.mjs"
        shutil.copyfile(PROGRAMS / f"{program}.mjs", copy)
        try:
            return _json([node, copy, *map(str, arguments)], path=own.parent)
        finally:
            copy.unlink()

    return run


def _json(command: Sequence[str | Path], path: Path | None = None) -> Any:
    """Run a program and return what it prints; programs that it runs are looked for in the folder `path` first."""
    found = [str(path)] if path else []
    done = subprocess.run(
        command,
        env={
            "PATH": os.pathsep.join([*found, os.environ["PATH"]]),
            "HOME": os.environ.get("HOME", "/"),
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stderr[-6000:]}"
    return json.loads(done.stdout)
