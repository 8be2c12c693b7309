from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgekit.cores import Cores, count_cores, usable_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's topology")


def topology(root: Path, siblings: dict[int, str], capacities: dict[int, int] | None = None) -> Path:
    for cpu, text in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/thread_siblings_list").write_text(f"{text}\n", encoding="ascii")
        if capacities:
            (folder / "cpu_capacity").write_text(f"{capacities[cpu]}\n", encoding="ascii")
    return root


def affinity(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus))


@linux
def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affinity(monkeypatch, 0, 1, 2, 3)
    root = topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert usable_cores(root) == 2
    assert count_cores(root).usable_cpus == 4


@linux
def test_cores_outside_the_affinity_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affinity(monkeypatch, 1)
    assert usable_cores(topology(tmp_path, {0: "0", 1: "1"})) == 1


@linux
def test_a_quota_of_any_ancestor_bounds_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affinity(monkeypatch, *range(8))
    root = topology(tmp_path, {cpu: str(cpu) for cpu in range(8)})
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/edge.slice/edgekit.service\n")
    (root / "proc/self/mountinfo").write_text("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    slice_folder = root / "sys/fs/cgroup/edge.slice"
    (slice_folder / "edgekit.service").mkdir(parents=True)
    for text, cores in (("150000 100000", 2), ("max 100000", 8), ("5000 100000", 1), ("nonsense", 8)):
        for folder in (slice_folder, slice_folder / "edgekit.service"):
            (folder / "cpu.max").write_text(text, encoding="ascii")
            assert usable_cores(root) == cores
            assert count_cores(root).usable_cpus == cores
            (folder / "cpu.max").write_text("400000 50000", encoding="ascii")


@linux
@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([414, 414, 414, 414, 1024, 1024, 1024, 1024], 4),  # RK3588
        ([485, 485, 485, 485, 1024, 1024], 2),  # RK3399
        ([1024, 1024, 1024, 1024], 4),
        ([230, 230, 230, 230, 790, 790, 790, 1024], 4),
    ],
)
def test_efficiency_cores_of_arm_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacities: list[int], cores: int
) -> None:
    cpus = range(len(capacities))
    affinity(monkeypatch, *cpus)
    root = topology(tmp_path, {cpu: str(cpu) for cpu in cpus}, dict(enumerate(capacities)))
    assert usable_cores(root) == cores
    assert count_cores(root).physical == len(capacities)
    # Pinned to the slowest cores, the process has no others.
    slowest = [cpu for cpu in cpus if capacities[cpu] == min(capacities)]
    affinity(monkeypatch, *slowest)
    assert usable_cores(root) == len(slowest)


@linux
def test_efficiency_cores_of_intel_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two performance cores with two threads each, and four efficiency cores.
    affinity(monkeypatch, *range(8))
    root = topology(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"} | {cpu: str(cpu) for cpu in range(4, 8)})
    for name, cpus in (("cpu_core", "0-3"), ("cpu_atom", "4-7")):
        (root / "sys/devices" / name).mkdir()
        (root / "sys/devices" / name / "cpus").write_text(f"{cpus}\n", encoding="ascii")
    assert (usable_cores(root), count_cores(root).physical) == (2, 6)
    affinity(monkeypatch, 5, 6)
    assert usable_cores(root) == 2


@linux
def test_a_machine_that_shows_no_topology_counts_its_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affinity(monkeypatch, 0, 5, 7)
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"hw.physicalcpu": 8, "hw.perflevel0.physicalcpu": 4}, Cores(8, 8, 8, 4)),
        ({"hw.physicalcpu": 4}, Cores(8, 8, 4, 4)),  # Intel: two threads per core, no levels
        ({}, Cores(8, 8, 8, 8)),
    ],
)
def test_on_a_mac_only_the_performance_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: dict[str, int], expected: Cores
) -> None:
    # This stands for macOS's program, which fails for a name that it does not know.
    cases = "".join(f"    {name}) echo {value};;\n" for name, value in reported.items())
    program = tmp_path / "sysctl"
    program.write_text(f'#!/bin/sh\ncase "$2" in\n{cases}    *) echo "unknown oid" >&2; exit 1;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert count_cores() == expected
    assert expected.usable == expected.full
