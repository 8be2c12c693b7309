"""What the daemon's modules load: each costs every start time and memory."""

from __future__ import annotations

import subprocess
import sys


def test_a_daemon_that_builds_no_engine_loads_nothing_of_what_builds_and_runs_them() -> None:
    program = (
        "import sys, edgekit.daemon.app\nprint(*sorted(name for name in sys.modules if name.startswith('edgekit.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    names = [name for name in loaded.stdout.split() if name.startswith("edgekit.")]
    assert "edgekit.daemon.engine_start" in names
    assert [name for name in names if "tensorrt" in name or "runners.cuda" in name] == []
