"""`python -m edgekit` is the command `edgekit`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import edgekit


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--version",), 0),
        (("--help",), 0),
        (("targets", "orin"), 0),
        (("targets", "xavier"), 2),
        (("exprot",), 2),
    ],
)
def test_the_module_prints_and_exits_as_the_command_does(arguments: tuple[str, ...], status: int) -> None:
    module = subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    command = edgekit(*arguments, check=False)
    assert (module.returncode, module.stdout, module.stderr) == (status, command.stdout, command.stderr)
    assert command.returncode == status


def test_importing_the_module_runs_nothing() -> None:
    program = "import edgekit.__main__\nprint('imported')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "imported\n")
