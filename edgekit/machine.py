"""Facts about this machine, read from the device tree, sysctl, nvidia-smi and /proc."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from edgekit.cgroups import MemoryLimit, memory_limits
from edgekit.errors import ConfigError
from edgekit.jetson.board import device_tree, find_board
from edgekit.programs import output_of

__all__ = [
    "Gpu",
    "Machine",
    "available_bytes",
    "cache_folder",
    "contiguous_bytes",
    "gpu_free_bytes",
    "home_folder",
    "memory_bytes",
    "memory_limit",
    "nvidia_smi",
    "parse_nvidia_smi",
    "peak_memory_bytes",
    "probe",
    "state_folder",
    "sysctl",
    "user_path",
]

GIB = 1024**3
_WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One discrete NVIDIA card, as nvidia-smi lists it.

    Attributes:
        name: Such as "NVIDIA GeForce RTX 3060".
        memory_gib: Memory of the card, GiB.
        compute_capability: Such as "8.6"; None if the driver is too old to report it.
    """

    name: str
    memory_gib: float
    compute_capability: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about a machine.

    Attributes:
        system: `platform.system()`: Linux, Darwin.
        architecture: `platform.machine()`: x86_64, aarch64, arm64.
        memory_gib: Total memory as the kernel counts it, GiB: less than installed, because of carve-outs.
        device_tree: The model and the compatible strings of the device tree; empty on a PC.
        cpu_brand: `machdep.cpu.brand_string` on macOS, the model name in /proc/cpuinfo elsewhere.
        gpus: Discrete NVIDIA cards. A Jetson's GPU is part of its device tree and not listed here.
    """

    system: str
    architecture: str
    memory_gib: float
    device_tree: tuple[str, ...] = ()
    cpu_brand: str | None = None
    gpus: tuple[Gpu, ...] = ()


def probe(root: Path = Path("/")) -> Machine:
    """Return the facts about this machine.

    Args:
        root: Folder that contains /proc; not / in tests and for mounted images.
    """
    system = platform.system()
    jetson = device_tree(root)
    if system == "Darwin":
        memory_gib, brand = (sysctl("hw.memsize") or 0) / GIB, output_of("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        total = _meminfo_gib(root, "MemTotal")
        memory_gib = total if total is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        brand = _cpuinfo_model(root)
    # A Jetson's nvidia-smi reports "[N/A]" as the integrated GPU's memory, so the device tree is used.
    gpus = () if find_board(jetson) else _gpus()
    return Machine(
        system=system,
        architecture=platform.machine(),
        memory_gib=memory_gib,
        device_tree=jetson,
        cpu_brand=brand or None,
        gpus=gpus,
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still allocate; None if unknown.

    Page cache that the kernel would reclaim counts, within the machine as within a limit of a control group. On a
    Jetson, what is set apart for contiguous buffers does not: the kernel counts it as available, but gives none of it
    to the GPU.

    Args:
        root: Folder that contains /proc and /sys.
    """
    free = _meminfo_gib(root, "MemAvailable")
    machine = [] if free is None else [max(0, int(free * GIB) - contiguous_bytes(root))]
    return min([*machine, *(limit.available for limit in memory_limits(root))], default=None)


def contiguous_bytes(root: Path = Path("/")) -> int:
    """Return the free memory that a Jetson's kernel keeps for buffers of cameras, video and display (CMA), in bytes.

    Its pages serve only what can be moved out of the way, as the memory of a program can and that of the GPU cannot.

    Args:
        root: Folder that contains /proc.
    """
    if find_board(device_tree(root)) is None:
        return 0
    return int((_meminfo_gib(root, "CmaFree") or 0.0) * GIB)


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """Return the tightest memory limit of this process's control groups that is below the machine's memory.

    Args:
        root: Folder that contains /proc and /sys.
    """
    total = _meminfo_gib(root, "MemTotal")
    limits = [limit for limit in memory_limits(root) if total is None or limit.limit < int(total * GIB)]
    return min(limits, key=lambda limit: (limit.limit, limit.available), default=None)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory of this machine within the limits of this process's control groups, bytes; None if unknown.

    Args:
        root: Folder that contains /proc and /sys.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = None
    limits = [limit.limit for limit in memory_limits(root)]
    return min(limits if total is None else [total, *limits], default=None)


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process, bytes; None if unknown."""
    try:
        # `ru_maxrss` would count what the parent had before this program started.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) or None


def sysctl(name: str) -> int | None:
    """Return a number that macOS reports, such as `hw.memsize`; None if it has no such name."""
    text = output_of("sysctl", "-n", name)
    return int(text) if text.isdigit() else None


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
    return parse_nvidia_smi(nvidia_smi("name,memory.total,compute_cap"))


def nvidia_smi(fields: str) -> str:
    """Return what nvidia-smi says of the cards, a line each: comma-separated values without units (memory in MiB).

    Empty if there is no driver or no card.

    Args:
        fields: Names of `nvidia-smi --help-query-gpu`.
    """
    # In WSL it is not on the PATH of services and of sudo.
    program = next((name for name in ("nvidia-smi", _WSL_SMI) if shutil.which(name)), "nvidia-smi")
    return output_of(program, f"--query-gpu={fields}", "--format=csv,noheader,nounits")


def gpu_free_bytes() -> int | None:
    """Return the free memory of the first NVIDIA card; None without a card that has memory of its own."""
    first = nvidia_smi("memory.free").partition("\n")[0].strip()
    # A Jetson's nvidia-smi says "[N/A]".
    return int(first) << 20 if first.isdecimal() else None


def parse_nvidia_smi(output: str) -> tuple[Gpu, ...]:
    """Parse `nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits` (MiB)."""
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


def home_folder() -> Path:
    """Return the account's home folder.

    Raises:
        ConfigError: It has none.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("this account has no home folder", hint="export HOME=FOLDER") from error


def user_path(text: str | Path) -> Path:
    """Return a path as the user wrote it, with a leading `~` expanded if there is such a home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def cache_folder() -> Path:
    """Return `$EDGEKIT_CACHE`, else `edgekit` in the system's cache folder.

    Raises:
        ConfigError: The account has no home folder.
    """
    if os.environ.get("EDGEKIT_CACHE"):
        return user_path(os.environ["EDGEKIT_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "edgekit"
    try:
        home = home_folder()
    except ConfigError as error:
        raise ConfigError(
            "there is no folder for downloads: no home folder", hint="export EDGEKIT_CACHE=FOLDER"
        ) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgekit"


def state_folder() -> Path | None:
    """Return `$EDGEKIT_STATE`, else systemd's `$STATE_DIRECTORY`, else `edgekit` in the user's folder for state.

    None for an account without a home folder.
    """
    if os.environ.get("EDGEKIT_STATE"):
        return user_path(os.environ["EDGEKIT_STATE"])
    # systemd separates several by colons; the unit has one.
    if systemd := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(systemd)
    if os.environ.get("XDG_STATE_HOME"):
        return Path(os.environ["XDG_STATE_HOME"]) / "edgekit"
    try:
        home = home_folder()
    except ConfigError:
        return None
    if not home.is_dir():
        return None
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/state") / "edgekit"
