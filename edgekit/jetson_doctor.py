"""What `edgekit doctor` checks on a Jetson: board, JetPack, power, heat, memory, and the libraries from NVIDIA."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgekit.check import Check
from edgekit.fatbin import gpu_code
from edgekit.jetson.desktop import STOP_DESKTOP, find_desktop
from edgekit.jetson.device import Jetson, Reading
from edgekit.jetson.files import read_text

__all__ = ["check_jetson", "onnxruntime_install", "onnxruntime_on_jetson", "tensorrt_version"]

JETPACK_WHEELS = "https://pypi.jetson-ai-lab.io/jp6/cu126"
"""NVIDIA's index of wheels with code for Orin, of JetPack 6.1 and 6.2."""

_TENSORRT_MIN = (10, 3)
_FIRST_L4T = (36, 4, 0)
_SUPER_L4T = (36, 4, 3)
_FLASH = "flash JetPack 6.2 or later with NVIDIA's SDK Manager"
_INSTEAD = ", so the GPU is not used and the CPU kernels run the model"
_ORIN = 87
_SCARCE_GIB = 9.0


def check_jetson(jetson: Jetson, memory_gib: float, root: Path) -> list[Check]:
    """Check a Jetson.

    Args:
        jetson: From `find_jetson`.
        memory_gib: Its memory as the kernel counts it.
        root: Folder that contains /proc and /usr.
    """
    reading = jetson.read()
    checks = [_board(jetson), _jetpack(jetson), _libnvinfer(root), _power_mode(reading), _clocks(reading)]
    return [*checks, *_desktop(root), *(_swap(root) if memory_gib < _SCARCE_GIB else [])]


def _board(jetson: Jetson) -> Check:
    board, jetpack = jetson.board, jetson.jetpack
    text = str(board) if board.part is None else f"{board} ({board.part}{'-super' * board.super_clocks})"
    if not board.has_super_variant or board.super_clocks or jetpack is None or jetpack.l4t < _SUPER_L4T:
        return Check("board", "ok", text)
    # Orin Nano: 625 of 1020 MHz and 68 of 102 GB/s; Orin NX: 765 of 1173 MHz (NVIDIA's data sheets).
    slow = "GPU and memory run" if "Nano" in (board.module or "") else "the GPU runs"
    fix = "flash it with the board configuration jetson-orin-nano-devkit-super"
    return Check("board", "warn", f"{text}: without a `-super` device tree {slow} at two thirds of the speed", fix)


def _jetpack(jetson: Jetson) -> Check:
    jetpack = jetson.jetpack
    if jetpack is None:
        detail = "unknown: neither /etc/nv_tegra_release nor the package nvidia-l4t-core says which"
        fix = "in a container, mount the file: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        return Check("jetpack", "warn", detail, fix)
    if jetpack.l4t < _FIRST_L4T:
        return Check("jetpack", "warn", f"{jetpack}: its TensorRT does not support INT4 weights{_INSTEAD}", _FLASH)
    return Check("jetpack", "note" if "than" in jetpack.version else "ok", str(jetpack))


def _libnvinfer(root: Path) -> Check:
    found = tensorrt_version(root)
    if found is None:
        return Check("libnvinfer", "warn", f"TensorRT is not installed{_INSTEAD}", "sudo apt install nvidia-jetpack")
    dotted = ".".join(map(str, found))
    if found[:2] < _TENSORRT_MIN:
        return Check("libnvinfer", "warn", f"TensorRT {dotted}; 10.3 or later is needed{_INSTEAD}", _FLASH)
    return Check("libnvinfer", "ok", f"TensorRT {dotted}")


def tensorrt_version(root: Path) -> tuple[int, ...] | None:
    """The version in the file name of the newest libnvinfer, whether or not its Python bindings are installed."""
    found = [
        tuple(int(part) for part in match[1].split("."))
        for folder in ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        for path in (root / folder).glob("libnvinfer.so.*")
        if (match := re.fullmatch(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", path.name))
    ]
    return max(found, default=None)


def _power_mode(reading: Reading) -> Check:
    mode = reading.power_mode
    if mode is None:
        return Check("power mode", "note", "unknown", "sudo nvpmodel -q")
    if mode.fastest is None:
        return Check("power mode", "ok", mode.name)
    name, number = mode.fastest
    return Check("power mode", "warn", f"{mode.name}; the fastest is {name}", f"sudo nvpmodel -m {number}")


def _clocks(reading: Reading) -> Check:
    """Whether the kernel lowers the clocks, now or since boot, with what it measures."""
    measured = []
    if reading.temperatures:
        measured.append(f"{max(reading.temperatures.values()):.0f} °C")
    if reading.total_watts is not None:
        measured.append(f"{reading.total_watts:.1f} W")
    text = ", ".join(measured) or "no sensors found"
    if reading.throttled_by:
        names = ", ".join(reading.throttled_by)
        return Check("clocks", "warn", f"lowered now ({names}); {text}", "improve the cooling or the power supply")
    events = sum(reading.overcurrent_events.values())
    if events:
        kinds = ", ".join(f"{name} {count}×" for name, count in reading.overcurrent_events.items() if count)
        fix = "use the power supply that came with the board, or a power mode with fewer watts"
        return Check("clocks", "note", f"lowered since boot for under-voltage or overcurrent ({kinds}); {text}", fix)
    if reading.throttled_by is None:
        return Check("clocks", "note", f"it is unknown whether they are lowered; {text}")
    return Check("clocks", "ok", f"not lowered; {text}")


def _desktop(root: Path) -> list[Check]:
    desktop = find_desktop(root)
    if desktop is None:
        return []
    detail = f"running: {desktop} of the memory that the GPU shares"
    return [Check("desktop", "note", detail, STOP_DESKTOP)]


def _swap(root: Path) -> list[Check]:
    """Swap in memory, as JetPack sets it up, does not help where the memory itself is short."""
    lines = (read_text(root / "proc/swaps") or "").splitlines()[1:]
    names = [line.split()[0] for line in lines if line.split()]
    if not names or not all("zram" in name for name in names):
        return []
    detail = "only compressed memory (zram); swap on an NVMe disk helps where an engine is built in scarce memory"
    fix = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
    return [Check("swap", "note", detail, fix)]


def onnxruntime_on_jetson(version: str, package: Path | None, jetson: Jetson) -> Check:
    """Check whether onnxruntime-gpu has code for Orin; PyPI's wheel for aarch64 has none.

    Args:
        version: The installed version.
        package: The folder of the module `onnxruntime`; None if it was not found.
        jetson: From `find_jetson`.
    """
    name, text = "onnxruntime on the GPU", f"onnxruntime-gpu {version}"
    code = None if package is None else gpu_code(package / "capi/libonnxruntime_providers_cuda.so")
    if code is not None and code.runs_on_jetson(_ORIN):
        return Check(name, "ok", text)
    fix = onnxruntime_install(jetson)
    if code is None:
        return Check(name, "warn", f"{text} has no readable library for CUDA", fix)
    others = ", ".join(f"SM{number}" for number in sorted(code.cubins)) or "no GPU"
    return Check(name, "warn", f"{text} has no code for Orin (SM{_ORIN}), only for {others}: it is PyPI's wheel", fix)


def onnxruntime_install(jetson: Jetson) -> str:
    """Return what installs an onnxruntime-gpu with code for Orin."""
    if jetson.jetpack is not None and jetson.jetpack.l4t[0] == 36:
        pip = f"{sys.executable} -m pip"
        remove, install = f"{pip} uninstall -y onnxruntime onnxruntime-gpu", f"{pip} install --index-url"
        return f"{remove} && {install} {JETPACK_WHEELS} onnxruntime-gpu"
    return "look for a wheel with code for Orin in NVIDIA's index for Jetson, https://pypi.jetson-ai-lab.io"
