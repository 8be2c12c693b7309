"""Whether the installed onnxruntime can compute on this machine's GPU, and why not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["DISTRIBUTIONS", "CudaProvider", "cuda_provider", "explain", "installed_distributions"]

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Both install the same package: the one installed last has overwritten the other."""

_PROBE = "edgekit.runners.cuda_probe"
# Loading the libraries from a slow disk, and the driver compiling kernels for a newer GPU.
_LIMIT_S = 180

_INSTALL = "pip install 'edgekit-llm[onnxruntime-gpu]'; on a Jetson, NVIDIA's wheel for it"


@dataclass(frozen=True, slots=True)
class CudaProvider:
    """What is known of onnxruntime's CUDA provider.

    Attributes:
        reason: Why it cannot be used, phrased to follow a colon; None if it computes.
        hint: What to do about it.
        version: Version of the package that is imported; None if there is none, or if it was not asked.
        providers: The providers that it lists; empty if it was not asked.
        distributions: The installed ones of `DISTRIBUTIONS`, with their versions.
    """

    reason: str | None
    hint: str | None = None
    version: str | None = None
    providers: tuple[str, ...] = ()
    distributions: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=1)
def cuda_provider() -> CudaProvider:
    """Find out, once per process. Where the package has the provider, another process runs an operator on it."""
    installed = installed_distributions()
    spec = find_spec("onnxruntime")
    if spec is None:
        return CudaProvider("onnxruntime is not installed", _INSTALL)
    if not _has_library(spec):
        return CudaProvider("the installed onnxruntime has no CUDA provider", _INSTALL, distributions=installed)
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", _PROBE],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            # It must import what this process would, and nothing from the working directory.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            cwd=os.sep,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CudaProvider(f"a matrix product took longer than {_LIMIT_S} s", distributions=installed)
    except OSError as error:
        return CudaProvider(f"it cannot be tried: {error.strerror or error}", distributions=installed)
    return _read(done, installed)


def installed_distributions() -> tuple[tuple[str, str], ...]:
    """Return which of `DISTRIBUTIONS` are installed, with their versions."""
    return tuple((name, found) for name in DISTRIBUTIONS if (found := _version(name)) is not None)


def _read(done: subprocess.CompletedProcess[str], installed: tuple[tuple[str, str], ...]) -> CudaProvider:
    """Read the probe's output; see `cuda_probe`."""
    # Libraries may print lines of their own before.
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        facts = json.loads(last)
        providers, error = tuple(map(str, facts["providers"])), facts["error"]
    except (ValueError, TypeError, KeyError):
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        reason, hint = explain(done.stderr)
        return CudaProvider(f"it crashed ({ended}): {reason}", hint, distributions=installed)
    found = str(facts["version"])
    if error is None:
        return CudaProvider(None, version=found, providers=providers, distributions=installed)
    # Why the library cannot be loaded is only in the log.
    reason, hint = explain(f"{error}\n{done.stderr}")
    return CudaProvider(reason, hint, found, providers, installed)


def explain(text: str) -> tuple[str, str | None]:
    """Return the reason in onnxruntime's messages, and what to do about it.

    Args:
        text: Its exception or log, which are long and full of its own source code.
    """
    for pattern, hint in (
        (r"no kernel image is available[^;\n]*", "install a build of onnxruntime for this GPU"),
        (r"libcuda\.so\.1: cannot open[^\n]*", "install NVIDIA's driver"),
        (r"CUDA driver version is insufficient[^;\n]*", "install or update NVIDIA's driver"),
        (r"no CUDA-capable device[^;\n]*", "is the GPU visible to this account and container?"),
        (r"lib\w+\.so[.\d]*: cannot open[^\n]*", "install CUDA's libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        (r"CUDA (?:failure|error) \w+: ?[^;\n]*", None),
        (r"with error: [^\n]*", None),
    ):
        found = re.search(pattern, text)
        if found is not None:
            return found[0].removeprefix("with error: ").strip(), hint
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[0].strip()[:200] if lines else "no reason given"), None


def _has_library(spec: ModuleSpec) -> bool:
    """Whether the package has the provider's library: asking onnxruntime itself takes a process."""
    folders = spec.submodule_search_locations or ()
    return any(next(Path(folder).rglob("*onnxruntime_providers_cuda*"), None) is not None for folder in folders)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
