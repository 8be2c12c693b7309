"""Compiles the kernel sources of `edgekit/runners/cuda/csrc` as C++ for this machine's CPU, with `host.h`."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import edgekit.runners.cuda

__all__ = ["CSRC", "host_kernel", "system_compiler"]

CSRC = Path(edgekit.runners.cuda.__file__).parent / "csrc"
_FUNCTION = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')


def system_compiler() -> str:
    """The system's C++ compiler; without one, the test is skipped."""
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@cache
def host_kernel(source: str, name: str) -> Callable[..., None]:
    """A kernel that runs on the CPU; takes the grid, the block, and the kernel's arguments as ctypes values."""
    text = (CSRC / f"{source}.cu").read_text(encoding="utf-8")
    parameters = dict(_FUNCTION.findall(text))[name]
    names = ", ".join(re.split(r"[\s*]+", parameter)[-1] for parameter in parameters.split(","))
    with tempfile.TemporaryDirectory() as folder:
        # The launch with its arguments: what `cuLaunchKernel` does.
        wrapper = Path(folder) / "wrapper.cpp"
        wrapper.write_text(
            f'#include "{CSRC / source}.cu"\n'
            f'extern "C" void launch(dim3 grid, dim3 block, {parameters}) {{\n'
            f"  edgekit_launch(grid, block, {name}, {names});\n}}\n",
            encoding="utf-8",
        )
        library = Path(folder) / "kernel.so"
        flags = ["-DEDGEKIT_HOST", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([system_compiler(), *flags, f"-I{CSRC}", "-o", library, wrapper], check=True)
        loaded = ctypes.CDLL(str(library))

    def launch(grid: tuple[int, int, int], block: tuple[int, int, int], *arguments: Any) -> None:
        loaded.launch(_Dim3(*grid), _Dim3(*block), *arguments)

    return launch


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]
