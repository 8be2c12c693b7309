"""Limits of control groups, read from trees that look like those of real machines and containers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgekit.cgroups import cpu_quotas, memory_limits
from edgekit.machine import available_bytes, memory_bytes, memory_limit

MIB = 1 << 20
V1_UNLIMITED = 9223372036854771712
SYSTEMD_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
DAEMON = "/system.slice/edgekit.service"


def machine(root: Path, *, cgroup: str, mountinfo: str, files: Mapping[str, object], available_mib: int = 8000) -> Path:
    """Write /proc and /sys below `root`."""
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {16000 * 1024} kB\nMemAvailable: {available_mib * 1024} kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "self/mountinfo").write_text("24 29 0:22 / /sys rw,nosuid - sysfs sysfs rw\n" + mountinfo)
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v1_mounts(*controllers: str, root: str = "/") -> str:
    """Lines of mountinfo as systemd mounts v1: `cpu,cpuacct` is one hierarchy."""
    line = "{0} 30 0:{0} {1} /sys/fs/cgroup/{2} rw,nosuid shared:{0} - cgroup cgroup rw,{2}\n"
    return "".join(line.format(40 + number, root, name) for number, name in enumerate(controllers))


def v1_memory(folder: str, limit: int, used_mib: int, stat: str = "") -> dict[str, object]:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used_mib * MIB,
        f"{folder}/memory.stat": f"cache 1\nhierarchical_memory_limit {min(limit, V1_UNLIMITED)}\n{stat}",
    }


def v2_memory(folder: str, used_mib: int, stat: str = "anon 0", **limits: object) -> dict[str, object]:
    files = {f"{folder}/memory.{name}": limit for name, limit in ({"max": "max", "high": "max"} | limits).items()}
    return {**files, f"{folder}/memory.current": used_mib * MIB, f"{folder}/memory.stat": stat}


def test_without_limits_the_kernels_figure_counts(tmp_path: Path) -> None:
    files = v2_memory(f"/sys/fs/cgroup{DAEMON}", 100) | {f"/sys/fs/cgroup{DAEMON}/cpu.max": "max 100000"}
    root = machine(tmp_path, cgroup=f"0::{DAEMON}\n", mountinfo=SYSTEMD_V2, files=files)
    assert available_bytes(root) == 8000 * MIB
    assert memory_limit(root) is None
    assert cpu_quotas(root) == []


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    assert cpu_quotas(tmp_path) == []
    assert memory_limit(tmp_path) is None
    assert available_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("limits", "expected_mib", "name"),
    [
        ({"max": 640 * MIB}, 240, "memory.max"),
        ({"high": 512 * MIB}, 112, "memory.high"),
        ({"max": 640 * MIB, "high": 512 * MIB}, 112, "memory.high"),
        ({"max": 512 * MIB, "high": 640 * MIB}, 112, "memory.max"),
        ({"max": 300 * MIB}, 0, "memory.max"),
    ],
)
def test_the_lower_of_memory_max_and_memory_high_counts(
    tmp_path: Path, limits: dict[str, object], expected_mib: int, name: str
) -> None:
    files = v2_memory(f"/sys/fs/cgroup{DAEMON}", 400, "anon 0", **limits)
    root = machine(tmp_path, cgroup=f"0::{DAEMON}\n", mountinfo=SYSTEMD_V2, files=files)
    assert available_bytes(root) == expected_mib * MIB
    limit = memory_limit(root)
    assert limit is not None
    assert limit.limit == min(int(str(value)) for value in limits.values())
    assert limit.file == root / f"sys/fs/cgroup{DAEMON}" / name
    assert memory_bytes(root) == limit.limit


def test_page_cache_that_can_be_reclaimed_counts_as_available(tmp_path: Path) -> None:
    # After loading a bundle of 100 MiB, its file is still cached: once read, or twice.
    stat = (
        f"anon {200 * MIB}\nfile {130 * MIB}\nshmem 0\nfile_mapped {20 * MIB}\ninactive_file {70 * MIB}\n"
        f"active_file {60 * MIB}\nslab_reclaimable {5 * MIB}\nslab_unreclaimable {5 * MIB}\n"
    )
    files = v2_memory(f"/sys/fs/cgroup{DAEMON}", 340, stat, max=640 * MIB)
    root = machine(tmp_path, cgroup=f"0::{DAEMON}\n", mountinfo=SYSTEMD_V2, files=files)
    # Libraries that are mapped stay.
    assert available_bytes(root) == (640 - 340 + 70 + 60 - 20 + 5) * MIB


def test_a_file_of_a_ram_disk_is_not_available(tmp_path: Path) -> None:
    stat = f"anon 0\nfile {300 * MIB}\nshmem {300 * MIB}\nfile_mapped {300 * MIB}\ninactive_file 0\nactive_file 0\n"
    files = v2_memory(f"/sys/fs/cgroup{DAEMON}", 340, stat, max=640 * MIB)
    root = machine(tmp_path, cgroup=f"0::{DAEMON}\n", mountinfo=SYSTEMD_V2, files=files)
    assert available_bytes(root) == 300 * MIB


def test_a_limit_of_any_ancestor_holds(tmp_path: Path) -> None:
    group = "/user.slice/user-1000.slice/user@1000.service/app.slice/edgekit.service"
    files = {
        **v2_memory(f"/sys/fs/cgroup{group}", 100, max=900 * MIB),
        **v2_memory("/sys/fs/cgroup/user.slice/user-1000.slice", 2000, max=2048 * MIB),
        **v2_memory("/sys/fs/cgroup/user.slice", 2100),
        "/sys/fs/cgroup/user.slice/cpu.max": "100000 100000",
        "/sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "max 100000",
        f"/sys/fs/cgroup{group}/cpu.max": "350000 100000",
    }
    root = machine(tmp_path, cgroup=f"0::{group}\n", mountinfo=SYSTEMD_V2, files=files)
    assert available_bytes(root) == 48 * MIB
    assert sorted(quota.cpus for quota in cpu_quotas(root)) == [1.0, 3.5]


def test_v1_is_read_with_its_cache_and_its_nested_quotas(tmp_path: Path) -> None:
    cgroup = (
        "12:memory:/system.slice/edgekit.service\n9:cpuset:/\n4:cpu,cpuacct:/system.slice/edgekit.service\n"
        "1:name=systemd:/system.slice/edgekit.service\n"
    )
    mounted = v1_mounts("cpuset", "cpu,cpuacct", "memory")
    stat = (
        f"inactive_file 0\ntotal_inactive_file {90 * MIB}\ntotal_active_file {40 * MIB}\ntotal_mapped_file {30 * MIB}"
    )
    cpu = "/sys/fs/cgroup/cpu,cpuacct"
    files: dict[str, object] = {
        **v1_memory("/sys/fs/cgroup/memory", V1_UNLIMITED, 4000),
        **v1_memory(f"/sys/fs/cgroup/memory{DAEMON}", 512 * MIB, 400, stat),
        f"{cpu}{DAEMON}/cpu.cfs_quota_us": -1,
        f"{cpu}{DAEMON}/cpu.cfs_period_us": 100000,
        f"{cpu}/system.slice/cpu.cfs_quota_us": 75000,
        f"{cpu}/system.slice/cpu.cfs_period_us": 50000,
    }
    root = machine(tmp_path, cgroup=cgroup, mountinfo=mounted, files=files)
    assert available_bytes(root) == (512 - 400 + 90 + 40 - 30) * MIB
    assert [(limit.limit, limit.file.name) for limit in memory_limits(root)] == [(512 * MIB, "memory.limit_in_bytes")]
    (quota,) = cpu_quotas(root)
    assert (quota.cpus, quota.file) == (1.5, root / "sys/fs/cgroup/cpu,cpuacct/system.slice/cpu.cfs_quota_us")


def test_in_a_hybrid_layout_the_v1_controllers_count(tmp_path: Path) -> None:
    cgroup = f"4:memory:{DAEMON}\n1:cpu:/\n0::{DAEMON}\n"
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files: dict[str, object] = {
        **v1_memory(f"/sys/fs/cgroup/memory{DAEMON}", 512 * MIB, 100),
        f"/sys/fs/cgroup/unified{DAEMON}/memory.pressure": "some avg10=0.00",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": 200000,
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
    }
    root = machine(tmp_path, cgroup=cgroup, mountinfo=v1_mounts("memory", "cpu") + unified, files=files)
    assert available_bytes(root) == 412 * MIB
    assert [quota.cpus for quota in cpu_quotas(root)] == [2.0]


def test_in_a_v1_container_the_tree_begins_at_its_own_group(tmp_path: Path) -> None:
    # The host's path is in /proc/self/cgroup, but only the container's folder is mounted.
    group = "/docker/0123456789abcdef"
    files = v1_memory("/sys/fs/cgroup/memory", 512 * MIB, 112) | {
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": 150000,
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
    }
    root = machine(
        tmp_path,
        cgroup=f"4:memory:{group}\n1:cpu:{group}\n",
        mountinfo=v1_mounts("memory", "cpu", root=group),
        files=files,
    )
    assert available_bytes(root) == 400 * MIB
    assert [quota.cpus for quota in cpu_quotas(root)] == [1.5]


def test_a_v1_limit_above_the_container_is_known_from_its_statistics(tmp_path: Path) -> None:
    group = "/docker/0123456789abcdef"
    files = v1_memory("/sys/fs/cgroup/memory", V1_UNLIMITED, 112)
    files["/sys/fs/cgroup/memory/memory.stat"] = f"hierarchical_memory_limit {512 * MIB}"
    mounted = v1_mounts("memory", root=group)
    root = machine(tmp_path, cgroup=f"4:memory:{group}\n", mountinfo=mounted, files=files)
    assert available_bytes(root) == 400 * MIB


def test_in_a_container_with_a_namespace_of_its_own_the_limits_are_at_the_top(tmp_path: Path) -> None:
    files = v2_memory("/sys/fs/cgroup", 40, max=640 * MIB) | {"/sys/fs/cgroup/cpu.max": "100000 100000"}
    mounted = "900 880 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
    root = machine(tmp_path, cgroup="0::/\n", mountinfo=mounted, files=files)
    assert available_bytes(root) == 600 * MIB
    assert [quota.cpus for quota in cpu_quotas(root)] == [1.0]


@pytest.mark.parametrize("group", ["/../other.scope", "/kubepods/pod1/abc", "/gone (deleted)"])
def test_a_group_outside_of_what_is_mounted_has_at_least_the_limits_of_the_top(tmp_path: Path, group: str) -> None:
    files = v2_memory("/sys/fs/cgroup", 40, max=640 * MIB)
    files |= v2_memory("/sys/fs", 1, max=2 * MIB) | v2_memory("/sys/fs/other.scope", 1, max=2 * MIB)
    top = "/docker/abc" if group.startswith("/kubepods") else "/"
    mounted = f"900 880 0:26 {top} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    root = machine(tmp_path, cgroup=f"0::{group}\n", mountinfo=mounted, files=files)
    assert available_bytes(root) == 600 * MIB


def test_of_several_mounts_of_one_tree_the_most_complete_is_read(tmp_path: Path) -> None:
    inner = "70 30 0:26 /system.slice /mnt/part\\040of\\040it rw - cgroup2 cgroup2 rw\n"
    files = v2_memory("/sys/fs/cgroup/system.slice", 100, max=640 * MIB)
    files |= v2_memory("/mnt/part of it/edgekit.service", 100, max=200 * MIB)
    root = machine(tmp_path / "a", cgroup=f"0::{DAEMON}\n", mountinfo=inner + SYSTEMD_V2, files=files)
    assert available_bytes(root) == 540 * MIB
    root = machine(tmp_path / "b", cgroup=f"0::{DAEMON}\n", mountinfo=inner, files=files)
    assert available_bytes(root) == 100 * MIB


@pytest.mark.parametrize("damaged", ["", "nonsense", "4:memory", "0::", "\n\n", "0::/a\n0::/b"])
def test_files_in_an_unknown_form_set_no_limit(tmp_path: Path, damaged: str) -> None:
    files = {f"/sys/fs/cgroup{DAEMON}/memory.max": damaged, f"/sys/fs/cgroup{DAEMON}/cpu.max": damaged}
    for number, (cgroup, mounted) in enumerate(
        ((damaged, SYSTEMD_V2), (f"0::{DAEMON}\n", damaged), (f"0::{DAEMON}\n", SYSTEMD_V2))
    ):
        root = machine(tmp_path / str(number), cgroup=cgroup, mountinfo=mounted, files=files)
        assert available_bytes(root) == 8000 * MIB
        assert cpu_quotas(root) == []


def test_a_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    files = v2_memory(f"/sys/fs/cgroup{DAEMON}", 100, max=64000 * MIB)
    root = machine(tmp_path, cgroup=f"0::{DAEMON}\n", mountinfo=SYSTEMD_V2, files=files)
    assert memory_limit(root) is None
    assert available_bytes(root) == 8000 * MIB
