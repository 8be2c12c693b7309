"""Compiles `edgekit/runners/cuda/csrc/*.cu` to the PTX beside them, with NVRTC from PyPI (24 MB): no GPU, no driver.

    python scripts/compile_ptx.py [--check]

PTX of compute capability 8.0 runs on every later GPU: an Orin (8.7), and desktop cards. NVRTC is that of JetPack 6.2's
CUDA: a driver refuses PTX of a later one. `--check` fails where a file differs instead of writing it.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["Nvrtc", "fetch_nvrtc", "main"]

REQUIREMENT = "nvidia-cuda-nvrtc-cu12==12.6.77"
ARCHITECTURE = "compute_80"
SOURCES = Path(__file__).parents[1] / "edgekit" / "runners" / "cuda" / "csrc"


class Nvrtc:
    """NVIDIA's runtime compiler.

    Args:
        library: The path of `libnvrtc.so.12`, with `libnvrtc-builtins` beside it.
    """

    def __init__(self, library: Path) -> None:
        # It looks for its builtins by name only.
        ctypes.CDLL(str(next(library.parent.glob("libnvrtc-builtins.so.*"))), ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))

    def compile(self, source: Path, architecture: str) -> bytes:
        """Compile for `compute_…` to PTX, for `sm_…` to a cubin.

        Raises:
            ValueError: The source has an error; the message is the compiler's.
        """
        program = ctypes.c_void_p()
        text, name = source.read_bytes(), source.name.encode()
        self._call("CreateProgram", ctypes.byref(program), text, name, 0, None, None)
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        status = self._library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            raise ValueError(f"{source}:\n{self._read(program, 'ProgramLog').decode(errors='replace')}")
        code = self._read(program, "PTX" if architecture.startswith("compute") else "CUBIN")
        self._call("DestroyProgram", ctypes.byref(program))
        return code

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw if what == "CUBIN" else buffer.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{name}")(*arguments)
        if status:
            raise RuntimeError(f"nvrtc{name} failed with {status}")


def fetch_nvrtc(folder: Path) -> Nvrtc:
    """Download the compiler into a folder, and load it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
    subprocess.run(pip, check=True)  # noqa: S603 - our own command
    (wheel,) = folder.glob("nvidia_cuda_nvrtc*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (library,) = folder.rglob("libnvrtc.so.12")
    return Nvrtc(library)


def main(arguments: list[str]) -> int:
    """Compile all sources."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        compiler = fetch_nvrtc(Path(folder))
        for source in sorted(SOURCES.glob("*.cu")):
            code, target = compiler.compile(source, ARCHITECTURE), source.with_suffix(".ptx")
            if "--check" not in arguments:
                target.write_bytes(code)
            elif not target.is_file() or target.read_bytes() != code:
                sys.stderr.write(f"{target.name} is not what {source.name} compiles to\n")
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
