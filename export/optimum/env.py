"""Optimum's own Python environment: where it is, and how it is made.

Optimum needs torch and a transformers that mlx-lm does not live with, so it gets a virtual environment and edgekit
runs that environment's interpreter. What goes into it is the extra `optimum` of edgekit's own package metadata, and
stands nowhere else. It knows nothing of models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from edgekit.errors import EdgekitError, ExportError, missing_extra
from edgekit.machine import cache_folder

__all__ = ["default_folder", "install", "optimum_python", "requirements"]

VARIABLE = "EDGEKIT_OPTIMUM_PYTHON"
_COMMAND = "edgekit optimum install"
# Written last, so that a folder that has it is whole; it says what was installed.
_STAMP = "edgekit-requirements.txt"


def default_folder() -> Path:
    """Where the environment is, unless `EDGEKIT_OPTIMUM_PYTHON` names another."""
    return cache_folder() / "optimum"


def optimum_python() -> Path:
    """Return the interpreter that has Optimum: `$EDGEKIT_OPTIMUM_PYTHON`, else that of `default_folder()`.

    Raises:
        EdgekitError: `missing_optimum`, if there is none or it was made by another version of edgekit.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise EdgekitError(
                f"{VARIABLE} names {named}, which is no program",
                hint=f"name the python of an environment that has optimum-onnx, or unset it and run `{_COMMAND}`",
                code="missing_optimum",
            )
        return path
    folder = default_folder()
    made_with = _stamp(folder)
    if made_with is None:
        raise EdgekitError(
            f"Optimum is not installed: it needs an environment of its own, and {folder} has none",
            hint=f"{_COMMAND}   (or name the python of one in {VARIABLE})",
            code="missing_optimum",
        )
    if made_with != requirements():
        raise EdgekitError(
            f"Optimum's environment in {folder} was made for another version of edgekit",
            hint=_COMMAND,
            code="missing_optimum",
        )
    return _python(folder)


def requirements() -> tuple[str, ...]:
    """What the environment holds, as pip takes it: the extra `optimum` of the installed edgekit.

    Raises:
        ExportError: edgekit runs from a folder that was never installed.
    """
    try:
        stated = requires("edgekit") or []
    except PackageNotFoundError as error:
        raise ExportError(
            "edgekit is not installed, so it does not know its extras", hint="pip install -e ."
        ) from error
    split = [line.partition(";") for line in stated]
    return tuple(sorted(name.strip() for name, _, marker in split if "optimum" in marker and "extra" in marker))


def install(folder: Path, *, extra_index_urls: Sequence[str] = ()) -> Path:
    """Make the environment, or leave it if it is there already; pip's own progress goes to stderr.

    Args:
        folder: Of the environment; what an interrupted run left there is replaced.
        extra_index_urls: Further package indexes for pip.

    Returns:
        The environment's interpreter.

    Raises:
        ExportError: The folder holds something else, or pip failed.
        EdgekitError: `missing_extra`, if pip itself is missing.
    """
    wanted, folder = requirements(), folder.expanduser().absolute()
    if _stamp(folder) == wanted:
        return _python(folder)
    if find_spec("pip") is None:
        raise missing_extra("pip", "export")
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise ExportError(f"{folder} is not empty and no Python environment", hint="name another folder")
    # Our own pip installs into it: Debian's Python has no ensurepip to put one there.
    make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
    _run(make, f"cannot make a Python environment in {folder}", hint="is there room, and may you write there?")
    pip = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install"]
    pip += ["--no-input", "--disable-pip-version-check"]
    pip += [word for url in extra_index_urls for word in ("--extra-index-url", url)]
    _run(
        [*pip, *wanted],
        f"pip could not install {', '.join(wanted)}",
        hint="what pip said stands above; check the network, and that your package index carries them",
    )
    (folder / _STAMP).write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return _python(folder)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _stamp(folder: Path) -> tuple[str, ...] | None:
    """What a whole environment was made with; None if there is none."""
    try:
        text = (folder / _STAMP).read_text(encoding="utf-8")
    except OSError:
        return None
    return tuple(text.split("\n")[:-1]) if os.access(_python(folder), os.X_OK) else None


def _run(command: Sequence[str], failed: str, *, hint: str) -> None:
    """Run a program whose words belong on stderr."""
    # Set where the caller is a virtual environment; pip and venv would look there.
    surroundings = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(command, stdout=2, stdin=subprocess.DEVNULL, env=surroundings, check=False)  # noqa: S603  our own command line
    except OSError as error:
        raise ExportError(f"{failed}: {error.strerror or error}", hint=hint) from error
    if done.returncode:
        raise ExportError(failed, hint=hint, code="install_failed")
