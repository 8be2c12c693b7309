"""What this machine says about itself: device tree, sysctl, nvidia-smi, /proc/meminfo.

Facts only. Which target they amount to is `target.recognise`'s question, and what is missing is `doctor`'s.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gpu", "Machine", "available_bytes", "available_gib", "cache_folder", "parse_nvidia_smi", "probe"]

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Gpu:
    """One discrete NVIDIA card, as nvidia-smi lists it.

    Attributes:
        name: "NVIDIA GeForce RTX 3060".
        memory_gib: Its own memory, GiB.
        compute_capability: "8.6"; None where the driver is too old to say.
    """

    name: str
    memory_gib: float
    compute_capability: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What was read off a machine.

    Attributes:
        system: `platform.system()`: Linux, Darwin.
        architecture: `platform.machine()`: x86_64, aarch64, arm64.
        memory_gib: Total memory as the kernel counts it (less than what is soldered on: carve-outs), GiB.
        device_tree: The model and the compatible strings of the device tree; empty on a PC.
        cpu_brand: `machdep.cpu.brand_string` on macOS, the model name of /proc/cpuinfo elsewhere.
        gpus: Discrete NVIDIA cards. A Jetson's GPU is part of its device tree, not listed here.
    """

    system: str
    architecture: str
    memory_gib: float
    device_tree: tuple[str, ...] = ()
    cpu_brand: str | None = None
    gpus: tuple[Gpu, ...] = ()


def probe(root: Path = Path("/")) -> Machine:
    """Read this machine.

    Args:
        root: Where /proc is looked for; another folder serves tests and mounted images.
    """
    system = platform.system()
    jetson = _device_tree(root)
    if system == "Darwin":
        memory_gib, brand = (
            int(_run("sysctl", "-n", "hw.memsize") or 0) / GIB,
            _run("sysctl", "-n", "machdep.cpu.brand_string"),
        )
    else:
        total = _meminfo_gib(root, "MemTotal")
        memory_gib = total if total is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        brand = _cpuinfo_model(root)
    # A Jetson's nvidia-smi lists the integrated GPU with "[N/A]" for its memory: the device tree says more.
    gpus = () if any("tegra" in item for item in jetson) else _gpus()
    return Machine(
        system=system,
        architecture=platform.machine(),
        memory_gib=memory_gib,
        device_tree=jetson,
        cpu_brand=brand or None,
        gpus=gpus,
    )


def _device_tree(root: Path) -> tuple[str, ...]:
    """The model, then the compatible strings: NUL-terminated, as the kernel exports them."""
    found: list[str] = []
    for name in ("model", "compatible"):
        try:
            raw = (root / "proc/device-tree" / name).read_bytes()
        except OSError:
            continue
        found += [part.decode("utf-8", "replace") for part in raw.split(b"\0") if part]
    return tuple(found)


def available_gib(root: Path = Path("/")) -> float | None:
    """Memory that a new process could have, page cache included, GiB; None where the kernel does not say."""
    return _meminfo_gib(root, "MemAvailable")


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process could still have, within its cgroup's limit, bytes; None where the kernel is silent."""
    free = _meminfo_gib(root, "MemAvailable")
    limits = [int(free * GIB)] if free is not None else []
    return min([*limits, *_cgroup_bytes(root)], default=None)


def _cgroup_bytes(root: Path) -> list[int]:
    """What the process's cgroup and each above it have left (cgroup v2); those without a limit are left out."""
    left = []
    try:
        group = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2]
        folder = root / "sys/fs/cgroup" / group.lstrip("/")
        for place in (folder, *folder.parents):
            file = place / "memory.max"
            limit = file.read_text().strip() if file.is_file() else "max"
            if limit != "max":
                left.append(max(0, int(limit) - int((place / "memory.current").read_text())))
    except (OSError, ValueError):
        return left
    return left


def _meminfo_gib(root: Path, key: str) -> float | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith(f"{key}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cpuinfo_model(root: Path) -> str:
    try:
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor()


def _gpus() -> tuple[Gpu, ...]:
    output = _run("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
    return parse_nvidia_smi(output)


def parse_nvidia_smi(output: str) -> tuple[Gpu, ...]:
    """Read `nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits` (MiB)."""
    cards: list[Gpu] = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3:
            continue
        try:
            memory_gib = float(fields[1]) / 1024
        except ValueError:
            continue
        capability = fields[2] if fields[2][:1].isdigit() else None
        cards.append(Gpu(fields[0], memory_gib, capability))
    return tuple(cards)


def _run(*command: str) -> str:
    """The program's output, or an empty string: a machine without it simply has less to say."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - fixed commands
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cache_folder() -> Path:
    """`$EDGEKIT_CACHE`, else `edgekit` in the place that the system has for caches."""
    if os.environ.get("EDGEKIT_CACHE"):
        return Path(os.environ["EDGEKIT_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "edgekit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgekit"
    return Path.home() / ".cache" / "edgekit"
