"""Makes type stubs of TensorRT's Python bindings, of the versions that devices have, without TensorRT or a GPU.

    python scripts/tensorrt_stubs.py FOLDER        writes FOLDER/10.3.0/tensorrt/__init__.pyi, and so on
    python scripts/tensorrt_stubs.py FOLDER mypy   and checks `edgekit/runners/tensorrt` against each

PyPI has the bindings as wheels. They import where three libraries export nine functions: here, of functions that return
null. pybind11-stubgen then reads the signatures from the real classes. TensorRT for RTX is taken from the environment.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

__all__ = ["VERSIONS", "check", "environment", "install", "make_stubs"]

ROOT = Path(__file__).parents[1]
VERSIONS = {
    # JetPack 6.2's, for Python 3.10 to 3.12.
    "10.3.0": (
        "1d6e4cf08ef1f54f6fd44a33cf6b253050af2fc6e9a1d92e40e1436a1d858eb0",
        "59ace22d7f2ca1e9dcde2cb0cb5916912cb3cd5a9d72dd7852be0160d9b3a0ee",
        "f5c2582aeaa7f5628d2c4d4148a701ebe97be78f7ff3b46a617f0ee0cb5460f2",
    ),
    # JetPack 7.2's, for Python 3.10 to 3.13.
    "10.16.1.11": (
        "c1b6a156db4eab526360f5dba375e5c33e1275e3f36b0a7d375febb3db6202fc",
        "150ef2b672487e29a8ea916353467c3e199994fb33589167e3641a928e243aa7",
        "8e339335e7255b3fb3954eca61b4acbbdfcf7b28505bd711914519647ba310c8",
        "f2a08cedfa48e300720e5bed070a45e390ea67dbcf475ffce725d10e0a2b3ba7",
    ),
}
"""Versions of the bindings, with the SHA-256 of their wheels for Linux x86_64."""

RTX = "rtx"
_STUBGEN = ("pybind11-stubgen", "3.0.0", ("859b7b7dbd31d00f722f19152216b5506e8a5d3fdf586944de0cade80f972298",))
_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
_SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
    "getBuilderPluginRegistry", "getPluginRegistry", "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip


def install(folder: Path) -> list[str]:
    """Download the bindings and compile what they link to.

    Args:
        folder: Created; `FOLDER/VERSION` then holds the package `tensorrt_bindings`.

    Returns:
        The versions that have a wheel for this Python, and `rtx` if that is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "null.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS), encoding="utf-8")
    for name in _LIBRARIES:
        library = f"lib{name}.so.10"
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        _run([compiler, *flags, str(source)])
    for version, hashes in VERSIONS.items():
        if sys.version_info < (3, 13) or len(hashes) > 3:
            _unpack(folder / version, "tensorrt-cu12-bindings", version, hashes)
    _unpack(folder / "stubgen", *_STUBGEN)
    found = [version for version in VERSIONS if (folder / version).is_dir()]
    return [*found, RTX] if find_spec("tensorrt_rtx_bindings") else found


def environment(folder: Path, version: str) -> dict[str, str]:
    """Return the environment in which the bindings of a version import."""
    paths = [str(folder / version), str(folder / "stubgen"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def module_of(version: str) -> str:
    """Return the name of a version's module."""
    return "tensorrt_rtx_bindings" if version == RTX else "tensorrt_bindings"


def make_stubs(folder: Path, version: str) -> Path:
    """Write the stubs of a version, as of a package `tensorrt`, and return the folder for MYPYPATH."""
    module, raw, target = module_of(version), folder / f"{version}-raw", folder / f"{version}-stubs"
    _run([sys.executable, "-m", "pybind11_stubgen", module, "-o", str(raw)], env=environment(folder, version))
    (stub,) = (path for path in (raw / module).glob("*.pyi") if path.stem != "__init__")
    (target / "tensorrt").mkdir(parents=True, exist_ok=True)
    lines = [*_repaired(stub.read_text(encoding="utf-8").splitlines()), "__version__: str", ""]
    (target / "tensorrt" / "__init__.pyi").write_text("\n".join(lines), encoding="utf-8")
    return target


def check(folder: Path, version: str, *files: str) -> str:
    """Check files of ours with mypy against the stubs of a version, and return its complaints."""
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-incremental"]
    env = {**os.environ, "MYPYPATH": str(folder / f"{version}-stubs")}
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, *files], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        return done.stdout + done.stderr
    # The stubs have faults of their own.
    return "\n".join(line for line in done.stdout.splitlines() if ": error:" in line and line.startswith(files))


def _repaired(lines: list[str]) -> Iterator[str]:
    """Replace the signatures that are not Python: a parameter named `in`, one without a default behind one with."""
    for line in lines:
        function = re.match(r"(\s*)def (\w+)\(", line)
        if function is None:
            yield line
            continue
        try:
            ast.parse(line.strip() + " ...")
        except SyntaxError:
            yield f"{function[1]}def {function[2]}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
        else:
            yield line


def _unpack(folder: Path, name: str, version: str, hashes: tuple[str, ...]) -> None:
    """Download a wheel whose hash is known, and unpack it."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{name}=={version} {' '.join(f'--hash=sha256:{one}' for one in hashes)}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    _run([*pip, "--dest", str(folder), "-r", str(wanted)])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} … failed:\n{done.stderr[-2000:]}")


def main(arguments: list[str]) -> int:
    """Make the stubs, and check the runner against them if asked to."""
    folder = Path(arguments[0]).resolve()
    complaints = ""
    for version in install(folder):
        make_stubs(folder, version)
        if "mypy" in arguments[1:]:
            complaints += check(folder, version, "edgekit/runners/tensorrt")
    sys.stderr.write(complaints)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
