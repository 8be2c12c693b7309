"""What several tests share: the real model, exported once per run for each target."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

SMALL = "smollm2-135m-instruct"
LARGE = "qwen2.5-coder-1.5b-instruct"

Export = Callable[..., Path]

# The same examples every time, so that a failure is the change's; `--hypothesis-profile=random` looks for new ones.
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile("steady")

# Where the tests run in the background SIGINT is ignored, and programs started from here would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def edgekit(*arguments: str | Path, timeout_s: float = 280, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a process of its own."""
    command = [sys.executable, "-c", "from edgekit.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
    )
    if check and done.returncode:
        pytest.fail(f"edgekit {' '.join(map(str, arguments))} exited with {done.returncode}:\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a catalogue model for a target, once per run; the model itself is fetched once per machine."""
    made: dict[tuple[str, ...], Path] = {}

    def export_once(target: str, model: str = SMALL, *options: str) -> Path:
        key = (target, model, *options)
        if key not in made:
            folder = tmp_path_factory.mktemp(target) / model
            edgekit("export", model, "--target", target, "-o", folder, *options, timeout_s=900)
            made[key] = folder
        return made[key]

    return export_once


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no EDGEKIT_ variable of this machine, but for the cache that holds the model and Optimum's place."""
    for name in list(os.environ):
        if name.startswith("EDGEKIT_") and name not in {"EDGEKIT_CACHE", "EDGEKIT_OPTIMUM_PYTHON"}:
            monkeypatch.delenv(name)
