"""Finds and installs Optimum's own Python environment.

Optimum needs torch and a transformers version that conflicts with mlx-lm, so it gets a virtual environment and edgekit
runs that environment's interpreter. Its packages are the extra `optimum` of edgekit's package metadata, and are listed
nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from edgekit.errors import EdgekitError, ExportError, missing_extra
from edgekit.machine import cache_folder, user_path

__all__ = ["default_folder", "install", "optimum_python", "requirements"]

VARIABLE = "EDGEKIT_OPTIMUM_PYTHON"
_COMMAND = "edgekit optimum install"
# Written last, so that a folder with it is complete; it lists what was installed.
_STAMP = "edgekit-requirements.txt"
# Written first: a folder without it may be a user's, and is never emptied.
_MARKER = "edgekit-optimum-environment"
# What venv and pip put into an environment; anything else beside them is a user's.
_CONTENTS = {"bin", "include", "lib", "lib64", "share", "etc", "man", "pyvenv.cfg", ".gitignore", _STAMP, _MARKER}


def default_folder() -> Path:
    """The environment's folder, unless `EDGEKIT_OPTIMUM_PYTHON` names another."""
    return cache_folder() / "optimum"


def optimum_python() -> Path:
    """Return the interpreter that has Optimum: `$EDGEKIT_OPTIMUM_PYTHON`, else that of `default_folder()`.

    Raises:
        EdgekitError: `missing_optimum`, if it is missing or was made for another version of edgekit.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = user_path(named).absolute()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise EdgekitError(
                f"{VARIABLE} is {named}, which is not a program",
                hint=f"set it to the python of an environment with optimum-onnx, or unset it and run `{_COMMAND}`",
                code="missing_optimum",
            )
        return path
    folder = default_folder()
    installed = _stamp(folder)
    if installed is None:
        raise EdgekitError(
            f"Optimum is not installed: it needs an environment of its own, and {folder} has none",
            hint=f"{_COMMAND}   (or set {VARIABLE} to the python of one)",
            code="missing_optimum",
        )
    if installed != requirements():
        raise EdgekitError(
            f"Optimum's environment in {folder} was made for another version of edgekit",
            hint=_COMMAND,
            code="missing_optimum",
        )
    return _python(folder)


def requirements() -> tuple[str, ...]:
    """The environment's packages, in pip's form: the extra `optimum` of the installed edgekit.

    Raises:
        ExportError: edgekit runs from a folder that was never installed.
    """
    try:
        stated = requires("edgekit-llm") or []
    except PackageNotFoundError as error:
        raise ExportError("edgekit is not installed, so its extras are unknown", hint="pip install -e .") from error
    split = [line.partition(";") for line in stated]
    return tuple(sorted(name.strip() for name, _, marker in split if "optimum" in marker and "extra" in marker))


def install(folder: Path, *, extra_index_urls: Sequence[str] = ()) -> Path:
    """Create the environment unless it is up to date; pip's progress goes to stderr.

    Args:
        folder: Of the environment; an older one, and what an interrupted run left, is replaced.
        extra_index_urls: Additional package indexes for pip.

    Returns:
        The environment's interpreter.

    Raises:
        ExportError: The folder contains something else, such as another Python environment or a user's file, or pip
            failed.
        EdgekitError: `missing_extra`, if pip itself is missing.
    """
    wanted, folder = requirements(), user_path(folder).absolute()
    if _stamp(folder) == wanted:
        return _python(folder)
    if find_spec("pip") is None:
        raise missing_extra("pip", "export")
    _empty(folder)
    # edgekit's own pip installs into it: Debian's Python has no ensurepip.
    venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    _run(venv, f"cannot create a Python environment in {folder}", hint="is there free space, and is it writable?")
    pip = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install"]
    pip += ["--no-input", "--disable-pip-version-check"]
    pip += [argument for url in extra_index_urls for argument in ("--extra-index-url", url)]
    _run(
        [*pip, *wanted],
        f"pip could not install {', '.join(wanted)}",
        hint="see pip's output above; check the network, and that your package index has them",
    )
    (folder / _STAMP).write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return _python(folder)


def _empty(folder: Path) -> None:
    """Create the folder, or empty it if it is edgekit's; the marker stays."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = list(folder.iterdir())
        if entries and not (folder / _MARKER).is_file():
            raise ExportError(
                f"{folder} is not empty, and no Optimum environment of edgekit's",
                hint="name another folder, or remove this one if you do not need it",
            )
        foreign = sorted(entry.name for entry in entries if entry.name not in _CONTENTS)
        if foreign:
            raise ExportError(
                f"{folder} is to be replaced, but has {foreign[0]}, which is not of the environment",
                hint="move it away, or name another folder",
            )
        (folder / _MARKER).touch()
        for entry in entries:
            if entry.name == _MARKER:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise ExportError(
            f"{error.filename or folder} cannot be replaced: {error.strerror or error}", hint="name another folder"
        ) from error


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _stamp(folder: Path) -> tuple[str, ...] | None:
    """The requirements of a complete environment, else None."""
    try:
        lines = (folder / _STAMP).read_text(encoding="utf-8").split("\n")
    except OSError:
        return None
    return tuple(lines[:-1]) if os.access(_python(folder), os.X_OK) else None


def _run(command: Sequence[str], failed: str, *, hint: str) -> None:
    """Run a program whose output belongs on stderr."""
    # Set inside a virtual environment, where pip and venv would look.
    environment = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(command, stdout=2, stdin=subprocess.DEVNULL, env=environment, check=False)  # noqa: S603  our own command line
    except OSError as error:
        raise ExportError(f"{failed}: {error.strerror or error}", hint=hint) from error
    if done.returncode:
        raise ExportError(failed, hint=hint, code="install_failed")
