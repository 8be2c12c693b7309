"""What `edgekit doctor` checks on a PC with an NVIDIA GPU: the driver, and whether the GPU multiplies INT4 weights."""

from __future__ import annotations

from pathlib import Path

from edgekit.check import Check
from edgekit.machine import Machine, nvidia_smi

__all__ = ["check_rtx"]

# The first driver that takes PTX 8.5, which our kernels are compiled to: CUDA 12.5.
_FIRST_DRIVER = 555
_FIRST_CAPABILITY = (8, 0)
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
_WSL_FIX = "install NVIDIA's driver in Windows, and none inside WSL; then, in Windows: wsl --shutdown"


def check_rtx(machine: Machine, root: Path) -> list[Check]:
    """Check the driver and the GPU of a PC; nothing if it has no NVIDIA GPU.

    Args:
        machine: From `probe`.
        root: Folder that contains /dev, /sys and /usr.
    """
    if machine.gpus:
        return [_driver(root), *_capability(machine)]
    return _without_driver(root)


def _driver(root: Path) -> Check:
    found = nvidia_smi("driver_version").partition("\n")[0].strip()
    major = found.partition(".")[0]
    if not major.isdecimal():
        return Check("NVIDIA driver", "note", "its version is unknown", "nvidia-smi")
    if int(major) < _FIRST_DRIVER:
        fix = _WSL_FIX if _is_wsl(root) else "sudo ubuntu-drivers install, or your distribution's package; then restart"
        return Check("NVIDIA driver", "warn", f"{found}; engines need {_FIRST_DRIVER} (CUDA 12.5) or later", fix)
    return Check("NVIDIA driver", "ok", found)


def _capability(machine: Machine) -> list[Check]:
    """A warning for a GPU that TensorRT for RTX builds no INT4 engine for."""
    gpu = machine.gpus[0]
    if gpu.compute_capability is None:
        return []
    major, _, minor = gpu.compute_capability.partition(".")
    if not (major.isdecimal() and minor.isdecimal()) or (int(major), int(minor)) >= _FIRST_CAPABILITY:
        return []
    detail = f"{gpu.name} has compute capability {gpu.compute_capability}; INT4 engines need 8.0 (RTX 30) or later"
    return [Check("GPU", "warn", f"{detail}: onnxruntime or the CPU runs the bundle")]


def _without_driver(root: Path) -> list[Check]:
    """What is wrong where a GPU is there and nvidia-smi lists none."""
    if _is_wsl(root):
        if (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
            return []
        return [Check("NVIDIA driver", "note", "none in WSL; without an NVIDIA GPU none is needed", _WSL_FIX)]
    if not any(_is_gpu(device) for device in sorted((root / "sys/bus/pci/devices").glob("*"))):
        return []
    fix = "sudo ubuntu-drivers install, or your distribution's package; in a container: docker run --gpus all …"
    return [Check("NVIDIA driver", "warn", "there is an NVIDIA GPU, but nvidia-smi does not list it: not used", fix)]


def _is_gpu(device: Path) -> bool:
    return _read(device / "vendor") == _NVIDIA and _read(device / "class").startswith(_DISPLAY)


def _is_wsl(root: Path) -> bool:
    return (root / "dev/dxg").exists()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
