"""Builds the source distribution, and from it every wheel; scripts/wheels installs hatchling and zig and runs it.

    python scripts/build_wheels.py FOLDER

Each wheel is checked (check_wheel.py), and nothing is left in FOLDER unless all of them pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from check_wheel import VARIANTS, WheelError, check

__all__ = ["TARGETS", "build"]

_ROOT = Path(__file__).parent.parent

# Platform of the tag -> zig's target. zig links against the symbols of that very glibc, and of that macOS.
TARGETS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
}


def build(folder: Path) -> list[str]:
    """Build into a folder, and return a line about each file.

    Raises:
        WheelError: A wheel must not be published.
        CalledProcessError: The build failed; its output went to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-wheels-") as temporary:
        place = Path(temporary)
        _hatchling(_ROOT, "sdist", place / "dist")
        (sdist,) = (place / "dist").iterdir()
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        source = place / sdist.name.removesuffix(".tar.gz")
        for target in TARGETS.values():
            # By this name, not by its path: the library contains a hash of the command.
            compiler = f"python -m ziglang cc -target {target}"
            _hatchling(source, "wheel", place / "dist", EDGEKIT_KERNEL_CC=compiler, EDGEKIT_WHEEL_KERNELS="required")
        _hatchling(source, "wheel", place / "dist", EDGEKIT_WHEEL_KERNELS="none")
        wheels = sorted((place / "dist").glob("*.whl"))
        lines = [f"{sdist.name}: the sources", *map(check, wheels)]
        platforms = {wheel.stem.rpartition("-")[2] for wheel in wheels}
        if missing := VARIANTS.keys() - platforms:
            raise WheelError(f"no wheel for {', '.join(sorted(missing))}")
        folder.mkdir(parents=True, exist_ok=True)
        for file in (sdist, *wheels):
            (folder / file.name).write_bytes(file.read_bytes())
    return lines


def _hatchling(source: Path, target: str, folder: Path, **settings: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, env={**os.environ, **settings}, stdout=sys.stderr, check=True)  # noqa: S603


def main() -> int:
    """Build into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python scripts/build_wheels.py FOLDER\n")
        return 2
    try:
        lines = build(Path(sys.argv[1]).absolute())
    except WheelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except subprocess.CalledProcessError:
        sys.stderr.write("error: the build failed; see above\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
