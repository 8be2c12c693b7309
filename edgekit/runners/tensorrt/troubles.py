"""What is known about failures of NVIDIA's builder, and what to do about them."""

from __future__ import annotations

import errno
import re
import resource
import signal
from pathlib import Path

from edgekit.errors import RunnerError, option
from edgekit.memory import GIB, MIB

__all__ = ["build_failed", "check_file_size", "killed", "load_failed", "write_failed"]

_MORE_SEGMENTS = (
    f"stop what else uses memory, or build with more {option('segments')}, which need less memory each; on a Jetson "
    "without a desktop: sudo systemctl isolate multi-user.target"
)

_NVMAP = (
    "known of JetPack 6.2.1 and 6.2.2, where large allocations fail although memory is free; L4T 36.4.7 mends it: "
    "sudo apt update && sudo apt install --only-upgrade 'nvidia-l4t-*', then reboot"
)
_MYELIN = (
    "Myelin, TensorRT's compiler of fused kernels, fails on some graphs: try another number of "
    f"{option('segments')}, or export the other dialect (edgekit export --dialect)"
)

_NO_DRIVER = re.compile(r"no CUDA-capable device|CUDA initialization|insufficient|CUDA driver", re.IGNORECASE)
_OTHER_VERSION = re.compile(r"serialization|magic", re.IGNORECASE)
_OTHER_GPU = re.compile(r"incompatible device|expecting compute|compute capability", re.IGNORECASE)
_TURING = (
    "INT4 weights need a GPU of compute capability 8.0 or later (RTX 30): on an older one, onnxruntime or the CPU runs "
    "the bundle without an engine"
)

_MORE_SPACE = "free some space, or name a folder on another disk"

# The first that matches counts.
_KNOWN: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        # github.com/ggml-org/llama.cpp/issues/23732
        re.compile(r"nvmap.*error 12|NvMapMemAlloc", re.IGNORECASE | re.DOTALL),
        _NVMAP,
    ),
    (re.compile(r"out of ?memory|outofmemory|bad_alloc|cudaMalloc", re.IGNORECASE), _MORE_SEGMENTS),
    # Of a build for compute capability 7.5.
    (re.compile(r"HW-specific datatypes: int4"), _TURING),
    (_NO_DRIVER, "the library finds no GPU that it can use: edgekit doctor"),
    (
        # github.com/NVIDIA/TensorRT/issues/4832
        re.compile(r"myelin", re.IGNORECASE),
        _MYELIN,
    ),
)


def build_failed(message: str, number: int | None = None) -> RunnerError:
    """Return the error for a failed build.

    Args:
        message: The builder's own.
        number: `errno`, if a system call failed.
    """
    message = " ".join(message.split())
    if number is not None and (hint := _disk_hint(number)) is not None:
        return RunnerError(message, hint=hint, code="build_disk")
    hint = next((text for pattern, text in _KNOWN if pattern.search(message)), None)
    return RunnerError(message, hint=hint, code="build_memory" if hint == _MORE_SEGMENTS else "build_failed")


def write_failed(what: str, error: OSError) -> RunnerError:
    """Return the error for an engine that cannot be stored.

    Args:
        what: What failed.
        error: The system's own.
    """
    hint = None if error.errno is None else _disk_hint(error.errno)
    message = f"{what}: {error.strerror or error}"
    return RunnerError(message, hint=hint, code=None if hint is None else "build_disk")


def check_file_size(needed: int) -> None:
    """Check that this process, and so its children, may write a file of so many bytes.

    Raises:
        RunnerError: `build_disk`: the limit of a file's size is lower.
    """
    limit = _file_size_limit()
    if limit is not None and needed > limit:
        raise RunnerError(
            f"a file of the engine takes at least {_size(needed)}", hint=_file_size_hint(), code="build_disk"
        )


def _disk_hint(number: int) -> str | None:
    """What to do if a write fails for lack of space."""
    if number == errno.ENOSPC:
        return _MORE_SPACE
    if number == errno.EDQUOT:
        return f"the account's disk quota is used up: {_MORE_SPACE}"
    return _file_size_hint() if number == errno.EFBIG else None


def _file_size_hint() -> str:
    """What to do if a file may not be as large as it must be."""
    smaller = f"build with more {option('segments')}, which are smaller files"
    limit = _file_size_limit()
    if limit is None:
        return f"the disk's file system does not hold files of this size: name a folder on another one, or {smaller}"
    return (
        f"a file may have {_size(limit)} at most here: raise the limit (`ulimit -f unlimited`; of a service, "
        f"LimitFSIZE=infinity in its unit), or {smaller}"
    )


def _size(count: int) -> str:
    return f"{count / MIB:,.1f} MiB" if count >= MIB else f"{count / 1024:,.0f} KiB"


def _file_size_limit() -> int | None:
    """The most bytes that a file may have which this process writes; None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def load_failed(path: Path, message: str) -> RunnerError:
    """Return the error for an engine that the library does not load.

    Args:
        path: The engine.
        message: The library's own.
    """
    message = " ".join(message.split())
    hint = "build it again: edgekit build BUNDLE"
    if _OTHER_VERSION.search(message):
        pass
    elif _OTHER_GPU.search(message):
        hint = "it is another GPU's; build one for this GPU: edgekit build BUNDLE"
    elif _NO_DRIVER.search(message):
        hint = "update NVIDIA's driver; a container needs the NVIDIA runtime (docker run --gpus all …): edgekit doctor"
    return RunnerError(f"TensorRT does not load {path}: {message}", hint=hint)


def killed(number: int, needed_bytes: int) -> RunnerError:
    """Return the error for a builder that a signal ended.

    Args:
        number: The signal.
        needed_bytes: The memory that the build was expected to need.
    """
    if number in (signal.SIGTERM, signal.SIGINT):
        # The service manager tells every process of a service to end.
        return RunnerError("TensorRT's builder was told to end", code="build_stopped")
    if number == signal.SIGKILL:
        return RunnerError(
            f"TensorRT's builder was killed, as the system does when memory is short; the build needs about "
            f"{needed_bytes / GIB:.1f} GiB",
            hint=_MORE_SEGMENTS,
            code="build_memory",
        )
    return RunnerError(
        f"TensorRT's builder crashed (signal {number})",
        hint=f"if memory is short, build with more {option('segments')}",
        code="build_failed",
    )
