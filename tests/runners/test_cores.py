from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgekit.runners.cores import usable_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's topology")


def topology(sys_folder: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        folder = sys_folder / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n", encoding="ascii")
    return sys_folder


def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert usable_cores(topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})) == 2


def test_cores_outside_the_affinity_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert usable_cores(topology(tmp_path, {0: "0", 1: "1"})) == 1


def test_a_containers_quota_bounds_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    topology(tmp_path, {cpu: str(cpu) for cpu in range(8)})
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    quota = tmp_path / "fs/cgroup/cpu.max"
    for text, cores in (("150000 100000", 2), ("max 100000", 8), ("5000 100000", 1), ("nonsense", 8)):
        quota.write_text(text, encoding="ascii")
        assert usable_cores(tmp_path) == cores


def test_a_machine_that_shows_no_topology_counts_its_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert usable_cores(tmp_path) == 3
