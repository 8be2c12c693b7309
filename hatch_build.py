"""Writes the version into wheels and source distributions, and the compiled CPU kernels into wheels.

A wheel with kernels is `py3-none-<platform>`: the library is plain C and serves every Python. Without a C compiler the
wheel is `py3-none-any`, and onnxruntime runs bundles for the CPU: missing kernels never fail an installation. Where
releases are built (scripts/wheels), $EDGEKIT_WHEEL_KERNELS decides instead: `required` fails the build unless every
variant compiles, `none` leaves the kernels out.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("edgekit", "runners", "cpu", "build.py")
_VERSION = Path("edgekit", "version.py")
_VARIABLE = "EDGEKIT_WHEEL_KERNELS"

_WITHOUT = "built without the CPU kernels, so onnxruntime runs bundles for the CPU, more slowly"


class BuildHook(BuildHookInterface[Any]):
    """Runs before and after hatchling puts a wheel or an sdist together; hatchling finds it by this file's name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the version, and compile: next to the sources for `pip install -e`, into the wheel otherwise.

        Args:
            version: `editable` or `standard`.
            build_data: What hatchling puts into the wheel; changed in place.

        Raises:
            ValueError: $EDGEKIT_WHEEL_KERNELS is neither `required` nor `none`.
            RuntimeError: Kernels are required and cannot be compiled.
        """
        if version != "editable":
            self._folder = tempfile.TemporaryDirectory(prefix="edgekit-wheel-")
            self._add_version(build_data)
        if self.target_name != "wheel":
            return
        wanted = os.environ.get(_VARIABLE, "")
        if wanted not in {"", "required", "none"}:
            raise ValueError(f"${_VARIABLE} is `{wanted}`, not `required` or `none`")
        if wanted != "none":
            self._add_kernels(version, build_data, required=wanted == "required")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the temporary files, which the wheel contains now."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()

    def _add_version(self, build_data: dict[str, Any]) -> None:
        name = _load(Path(self.root) / _VERSION).FILE
        file = Path(self._folder.name) / name
        file.write_text(f"{self.metadata.version}\n", encoding="ascii")
        build_data["force_include"][str(file)] = _VERSION.with_name(name).as_posix()

    def _add_kernels(self, version: str, build_data: dict[str, Any], *, required: bool) -> None:
        build = _load(Path(self.root) / _BUILD)
        try:
            compiler = build.find_compiler()
        except build.BuildError as error:
            if required:
                raise RuntimeError(str(error)) from error
            _say(f"{_WITHOUT}: {error}")
            _say("for the kernels, install a C compiler (apt install gcc libc6-dev) and install edgekit again")
            return
        try:
            if version == "editable":
                built = build.refresh(compiler)
            else:
                library = Path(self._folder.name) / build.LIBRARY
                built = build.compile_kernels(compiler, build.FOLDER / build.SOURCES, library)
                build_data["force_include"][str(library)] = _BUILD.with_name(build.LIBRARY).as_posix()
                # Not hatchling's `infer_tag`, which would bind the wheel to this Python.
                build_data["tag"] = f"py3-none-{build.platform_tag(compiler)}"
                build_data["pure_python"] = False
        except build.BuildError as error:
            if required:
                raise RuntimeError(str(error)) from error
            _say(f"{_WITHOUT}: {error}")
            return
        if built is None:
            return
        if required and built.left_out:
            raise RuntimeError(built.describe())
        _say(built.describe())


def _say(text: str) -> None:
    # pip shows it with -v alone; `edgekit doctor` says it again.
    sys.stderr.write("".join(f"edgekit: {line}\n" for line in text.splitlines()))


def _load(path: Path) -> ModuleType:
    """Load a file of a package that cannot be imported yet."""
    spec = importlib.util.spec_from_file_location(f"edgekit_build_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
