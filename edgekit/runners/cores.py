"""How many threads a runner should start: one per physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(sys: Path = Path("/sys")) -> int:
    """Count physical cores within the process's CPU affinity and its cgroup's quota, at least 1.

    A second thread on a core adds nothing to matrix multiplication; threads beyond a container's quota only wait
    for one another.

    Args:
        sys: Where Linux shows its topology; elsewhere logical CPUs are counted.
    """
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return os.cpu_count() or 1
    cores = {_siblings(sys, cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(sys, len(cores))))


def _siblings(sys: Path, cpu: int) -> str:
    try:
        return (sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota(sys: Path, unlimited: int) -> int:
    """Whole CPUs that cgroup v2 grants, rounded up."""
    try:
        quota, period = (sys / "fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return unlimited if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return unlimited
