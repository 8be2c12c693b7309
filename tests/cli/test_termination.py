"""A verb that is terminated leaves no files and no program behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import edgekit_command
from tests.models import tiny_checkpoint


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_export_that_is_terminated_leaves_no_files_and_no_child(tmp_path: Path, number: signal.Signals) -> None:
    """It is waiting for Optimum's process, which takes minutes; here it takes as long as it is let."""
    child = tmp_path / "child"
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\necho $$ > {child}.new && mv {child}.new {child}\nexec sleep 300\n")
    interpreter.chmod(0o755)
    for name in ("temporary", "bundles"):
        (tmp_path / name).mkdir()
    output = tmp_path / "bundles" / "bundle"
    options = ("--target", "cpu", "--exporter", "optimum", "--recipe", "none", "-o", output)
    process = subprocess.Popen(
        edgekit_command("export", tiny_checkpoint(tmp_path / "checkpoint"), *options),
        env={**os.environ, "EDGEKIT_OPTIMUM_PYTHON": str(interpreter), "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not child.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the export started no program"
        time.sleep(0.02)
    number_of_child = int(child.read_text())
    assert any((tmp_path / "temporary").iterdir()), "nothing to clean up: nothing is tested"
    assert any((tmp_path / "bundles").iterdir()), "nothing to clean up: nothing is tested"
    try:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert b"Traceback" not in errors
        # After Ctrl-C it is killed, but not waited for.
        deadline = time.monotonic() + 20
        while lives(number_of_child):
            assert time.monotonic() < deadline, "the program that the export started goes on"
            time.sleep(0.02)
        assert list((tmp_path / "temporary").iterdir()) == []
        assert list((tmp_path / "bundles").iterdir()) == []
    finally:
        process.kill()
        if Path(f"/proc/{number_of_child}").exists():
            os.kill(number_of_child, signal.SIGKILL)
