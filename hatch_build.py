"""Puts the compiled CPU kernels into the wheel.

A wheel that has them is `py3-none-<platform>`: the library is plain C and serves every Python. Without a C compiler
the wheel is `py3-none-any`, and onnxruntime runs all bundles for the CPU: an installation never fails for their sake.
How they are compiled is edgekit/runners/cpu/build.py's business.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("edgekit", "runners", "cpu", "build.py")

_WITHOUT = "built without the CPU kernels, so onnxruntime runs bundles for the CPU, more slowly"


class KernelsHook(BuildHookInterface[Any]):
    """Compiles before a wheel is put together; hatchling finds it by the name of this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: next to the sources for `pip install -e`, into the wheel otherwise.

        Args:
            version: `editable` or `standard`.
            build_data: What hatchling puts into the wheel; changed in place.
        """
        if self.target_name != "wheel":
            return
        build = _load(Path(self.root) / _BUILD)
        try:
            compiler = build.find_compiler()
        except build.BuildError as error:
            _say(f"{_WITHOUT}: {error}")
            _say("for the kernels, install a C compiler (apt install gcc libc6-dev) and install edgekit again")
            return
        try:
            if version == "editable":
                built = build.refresh(compiler)
            else:
                self._folder = tempfile.TemporaryDirectory(prefix="edgekit-wheel-")
                library = Path(self._folder.name) / build.LIBRARY
                built = build.compile_kernels(compiler, build.FOLDER / build.SOURCES, library)
                build_data["force_include"][str(library)] = _BUILD.with_name(build.LIBRARY).as_posix()
                # Not hatchling's `infer_tag`, which would bind the wheel to this Python.
                build_data["tag"] = f"py3-none-{build.platform_tag(compiler)}"
                build_data["pure_python"] = False
        except build.BuildError as error:
            _say(f"{_WITHOUT}: {error}")
        else:
            if built is not None:
                _say(built.describe())

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what the wheel holds now."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()


def _say(text: str) -> None:
    # pip shows it with -v alone; `edgekit doctor` says it again.
    sys.stderr.write("".join(f"edgekit: {line}\n" for line in text.splitlines()))


def _load(path: Path) -> ModuleType:
    """Load a file whose package cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("edgekit_kernels_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
