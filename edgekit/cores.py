"""Counts the cores that this process may use: the default number of threads."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.cgroups import CpuQuota, cpu_quotas
from edgekit.machine import sysctl

__all__ = ["Cores", "count_cores", "usable_cores"]

# Cores below this share of the fastest one's capacity are efficiency cores: a Cortex-A55 beside a Cortex-A76 has 0.4.
_FULL = 0.6


@dataclass(frozen=True, slots=True)
class Cores:
    """The CPUs of this machine, and what is left of them for this process.

    Attributes:
        cpus: Logical CPUs of the machine.
        allowed: Those within the process's CPU affinity, which cpusets limit too.
        physical: Physical cores among those.
        full: Physical cores without the efficiency cores.
        quota: The lowest CPU quota of the process's control groups; None without one.
    """

    cpus: int
    allowed: int
    physical: int
    full: int
    quota: CpuQuota | None = None

    @property
    def usable(self) -> int:
        """Cores worth a thread each, at least 1.

        A second thread on a core adds nothing to matrix multiplication, an efficiency core holds the others up at
        every barrier, and threads beyond a quota only wait for one another.
        """
        return self._granted(self.full)

    @property
    def usable_cpus(self) -> int:
        """Logical CPUs worth a thread each, at least 1: for work that is not matrix multiplication."""
        return self._granted(self.allowed)

    def _granted(self, wanted: int) -> int:
        return max(1, wanted if self.quota is None else min(wanted, math.ceil(self.quota.cpus)))


def usable_cores(root: Path = Path("/")) -> int:
    """Return `count_cores(root).usable`: the default number of threads."""
    return count_cores(root).usable


def count_cores(root: Path = Path("/")) -> Cores:
    """Count the cores of this machine that this process may use.

    Args:
        root: Folder that contains Linux's /proc and /sys; macOS reports its cores by sysctl.
    """
    cpus = os.cpu_count() or 1
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        physical = sysctl("hw.physicalcpu") or cpus
        # Level 0 are the performance cores; Macs with Intel processors have no levels.
        return Cores(cpus, cpus, physical, sysctl("hw.perflevel0.physicalcpu") or physical)
    devices = root / "sys/devices"
    cores = {_siblings(devices, cpu): _capacity(devices, cpu) for cpu in allowed}
    # Intel's hybrid processors list their performance cores.
    listed = allowed & _cpu_list(_text(devices / "cpu_core/cpus"))
    if listed:
        full = len({_siblings(devices, cpu) for cpu in listed})
    else:
        full = sum(capacity >= _FULL * max(cores.values()) for capacity in cores.values())
    quota = min(cpu_quotas(root), key=lambda quota: quota.cpus, default=None)
    return Cores(max(cpus, len(allowed)), len(allowed), len(cores), full, quota)


def _siblings(devices: Path, cpu: int) -> str:
    """The logical CPUs of one core, which identify it."""
    return _text(devices / f"system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _capacity(devices: Path, cpu: int) -> int:
    """The CPU's speed, of which the fastest core's is 1024; Linux reports it on Arm."""
    text = _text(devices / f"system/cpu/cpu{cpu}/cpu_capacity")
    return int(text) if text.isdigit() else 1024


def _cpu_list(text: str) -> set[int]:
    """Parse Linux's lists of CPUs: `0-3,8`."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
