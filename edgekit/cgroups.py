"""Reads what this process's control groups (Linux, v1 and v2) leave it of memory and CPU time.

A limit of any ancestor holds too, and the hierarchies may be mixed: systemd's hybrid layout has v1 controllers beside
an empty v2 tree. In a container the tree may begin at the container's own group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["CpuQuota", "MemoryLimit", "cpu_quotas", "memory_limits"]

# v1 writes "no limit" as the largest multiple of the page size.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A memory limit of one group.

    Attributes:
        limit: Bytes for all processes of the group.
        available: Bytes that they can still allocate; page cache that the kernel would reclaim counts as available.
        file: The file that sets the limit.
    """

    limit: int
    available: int
    file: Path


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """A CPU quota of one group.

    Attributes:
        cpus: CPU seconds per second for all processes of the group, such as 1.5.
        file: The file that sets the quota.
    """

    cpus: float
    file: Path


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Return the memory limits that hold for this process: its group's and its ancestors'.

    Args:
        root: Folder that contains /proc and /sys.
    """
    return [limit for folder in _groups(root, "memory") for limit in (*_memory_v2(folder), *_memory_v1(folder))]


def cpu_quotas(root: Path = Path("/")) -> list[CpuQuota]:
    """Return the CPU quotas that hold for this process: its group's and its ancestors'.

    Args:
        root: Folder that contains /proc and /sys.
    """
    return [quota for folder in _groups(root, "cpu") for quota in (*_quota_v2(folder), *_quota_v1(folder))]


def _memory_v2(folder: Path) -> Iterator[MemoryLimit]:
    # Above `memory.high` a group is slowed down until it is as good as stopped.
    limits = [(limit, name) for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    if not limits:
        return
    limit, name = min(limits)
    stat = _table(folder / "memory.stat")
    pages = stat.get("inactive_file", 0) + stat.get("active_file", 0) - stat.get("file_mapped", 0)
    reclaimable = max(0, pages) + stat.get("slab_reclaimable", 0)
    yield _limit(limit, _number(folder / "memory.current"), reclaimable, folder / name)


def _memory_v1(folder: Path) -> Iterator[MemoryLimit]:
    stat = _table(folder / "memory.stat")
    # The lowest of the ancestors' limits is known even where a container hides the ancestors themselves.
    inherited = stat.get("hierarchical_memory_limit", _UNLIMITED)
    own = _number(folder / "memory.limit_in_bytes")
    if own is None or min(own, inherited) >= _UNLIMITED:
        return
    pages = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0) - stat.get("total_mapped_file", 0)
    used = _number(folder / "memory.usage_in_bytes")
    file = folder / ("memory.limit_in_bytes" if own <= inherited else "memory.stat")
    yield _limit(min(own, inherited), used, max(0, pages), file)


def _limit(limit: int, used: int | None, reclaimable: int, file: Path) -> MemoryLimit:
    kept = max(0, (used or 0) - reclaimable)
    return MemoryLimit(limit, max(0, limit - kept), file)


def _quota_v2(folder: Path) -> Iterator[CpuQuota]:
    file = folder / "cpu.max"
    match = re.fullmatch(r"(\d+) (\d+)", _text(file).strip())
    if match and int(match[2]):
        yield CpuQuota(int(match[1]) / int(match[2]), file)


def _quota_v1(folder: Path) -> Iterator[CpuQuota]:
    file = folder / "cpu.cfs_quota_us"
    quota, period = _number(file), _number(folder / "cpu.cfs_period_us")
    # -1 is no quota.
    if quota is not None and quota > 0 and period:
        yield CpuQuota(quota / period, file)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and its ancestors, in every hierarchy that may have the controller."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        suited = [mount for mount in mounts if mount.has(version, controller)]
        holding = [mount for mount in suited if mount.holds(group)]
        if not suited:
            continue
        # The mount that shows the most ancestors. One that does not show the group at all is a container's, whose
        # processes were moved or have a namespace of their own: its top is an ancestor.
        mount = min(holding or suited[:1], key=lambda mount: len(mount.root))
        top = root / mount.point.lstrip("/")
        folder = top / PurePosixPath(group).relative_to(mount.root) if holding else top
        yield from (item for item in (folder, *folder.parents) if item == top or top in item.parents)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: the group at its top, where it is mounted, and for v1 the controllers."""

    version: int
    controllers: tuple[str, ...]
    root: str
    point: str

    def has(self, version: int, controller: str) -> bool:
        return self.version == version and (version == 2 or controller in self.controllers)

    def holds(self, group: str) -> bool:
        path, top = PurePosixPath(group), PurePosixPath(self.root)
        # `..` is above the root of the process's cgroup namespace.
        return ".." not in path.parts and (path == top or top in path.parents)


def _mounts(root: Path) -> Iterator[_Mount]:
    """Parse /proc/self/mountinfo: `31 23 0:28 ROOT POINT OPTIONS … - TYPE SOURCE SUPER_OPTIONS`."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in {"cgroup", "cgroup2"}:
            version = 2 if kind[0] == "cgroup2" else 1
            yield _Mount(version, tuple(kind[2].split(",")), _unescape(fields[3]), _unescape(fields[4]))


def _unescape(text: str) -> str:
    r"""Spaces and the like are written in octal: `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _table(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(file: Path) -> int | None:
    """The number in the file; None if there is none, as with `max`."""
    text = _text(file).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
