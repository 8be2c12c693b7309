"""Describes this machine for a report that its owner publishes: no serial numbers, host names, accounts or paths."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgekit.doctor import machine_checks
from edgekit.machine import Machine, home_folder
from edgekit.programs import output_of

__all__ = ["DeviceFacts", "device_facts", "without_paths"]

_LIBRARIES = (
    *("numpy", "tokenizers", "llguidance", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12-libs"),
    *("cuda-bindings", "mlx", "mlx-lm"),
)
# Instruction sets that decide the speed of matrix products, as /proc/cpuinfo calls them.
_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)
_CPUINFO_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a machine is.

    Attributes:
        facts: Name and text of each fact, in display order.
        libraries: Versions of the installed libraries that compute, by distribution.
    """

    facts: dict[str, str]
    libraries: dict[str, str]


def device_facts(machine: Machine, root: Path = Path("/")) -> DeviceFacts:
    """Describe a machine; sensors are read while it is idle.

    Args:
        machine: From `probe`.
        root: Folder that contains /etc, /proc, /sys and /usr.
    """
    facts = {check.name: without_paths(check.detail) for check in machine_checks(machine, root)}
    facts["system"] = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    if instructions := _instructions(root):
        facts["instructions"] = ", ".join(instructions)
    for number, gpu in enumerate(machine.gpus):
        name = "GPU" if number == 0 else f"GPU {number}"
        facts[name] = f"{gpu.name}, {gpu.memory_gib:.1f} GiB, compute capability {gpu.compute_capability or 'unknown'}"
    if machine.gpus:
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        facts["driver"] = driver or "unknown"
    return DeviceFacts(facts, {name: found for name in _LIBRARIES if (found := _version(name)) is not None})


def without_paths(text: str, *private: str) -> str:
    """Return a text with only the last part of each path: the others name accounts and projects.

    Args:
        text: Such as the reason why a runner cannot be used.
        private: Strings that are left out whatever they are, such as a folder that contains blanks.
    """
    try:
        home = str(home_folder())
    except Exception:  # noqa: BLE001  an account without one
        home = ""
    for known in sorted({*private, home, sys.prefix, sys.base_prefix} - {"", "/"}, key=len, reverse=True):
        # A path as it is; of a bundle `rtx`, not the end of `nvidia-rtx`.
        text = (
            text.replace(known, "…") if "/" in known else re.sub(rf"(?<![\w-]){re.escape(known)}(?![\w-])", "…", text)
        )
    # Not the slashes of a URL, of `tokens/s`, or of a date.
    return re.sub(r"(?<![\w:/.…])(?:~|…)?(?:/[^\s/'\"`;,:()]+)*/([^\s/'\"`;,:()]+)", r"…/\1", text)


def _instructions(root: Path) -> list[str]:
    """The instruction sets of `_INSTRUCTIONS` that every core has, as Linux lists them."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_CPUINFO_BYTES).splitlines()
    except OSError:
        return []
    cores = [set(line.partition(":")[2].split()) for line in lines if re.match(r"(flags|Features)\s*:", line)]
    return [name for name in _INSTRUCTIONS if cores and all(name in core for core in cores)]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
