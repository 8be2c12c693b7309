"""The environment of lm-eval, beside `.venv`: it has a hundred packages that nothing else here needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError

__all__ = ["VARIABLE", "evals_python", "run"]

VARIABLE = "EDGEKIT_BENCH_EVALS_PYTHON"

# Without torch, which lm-eval needs for models that it runs itself. transformers reads the tokenizer of a folder.
_PINS = ("lm-eval[api]==0.4.13", "transformers==5.24.0")
_FOLDER = Path(__file__).parents[2] / ".venv-evals"
_STAMP = "edgekit-evals"


def evals_python(*, install: bool = True) -> Path | None:
    """Return the Python that has lm-eval.

    Args:
        install: Create the environment on first use, in minutes; about 0.9 GB. Otherwise None is returned.

    Raises:
        EdgekitError: It cannot be created.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not _has_lm_eval(chosen):
            raise EdgekitError(f"{chosen} has no lm-eval", hint=f"${VARIABLE} names it; unset it for {_FOLDER.name}")
        return Path(chosen)
    stamp = _FOLDER / _STAMP
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != "\n".join(_PINS):
        if not install:
            return None
        _install(stamp)
    return _FOLDER / "bin" / "python"


def _has_lm_eval(python: str) -> bool:
    # Without `datasets` it has only clients of servers.
    look = "import sys; from importlib.util import find_spec as f; sys.exit(not (f('lm_eval') and f('datasets')))"
    try:
        return subprocess.run([python, "-c", look], check=False).returncode == 0
    except OSError:
        return False


def _install(stamp: Path) -> None:
    print(f"installing {' '.join(_PINS)} into {_FOLDER.name}", file=sys.stderr)
    shutil.rmtree(_FOLDER, ignore_errors=True)
    pip = [str(_FOLDER / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(_FOLDER)], check=True)
        subprocess.run([*pip, "--progress-bar", "off", *_PINS], check=True)
    except subprocess.CalledProcessError as error:
        hint = f"or name a Python that has lm-eval in ${VARIABLE}"
        raise EdgekitError(f"{_FOLDER.name} cannot be created: {error}", hint=hint) from error
    stamp.write_text("\n".join(_PINS), encoding="utf-8")


def run(python: Path, program: str, *arguments: object, environment: Mapping[str, str]) -> None:
    """Run one of the programs beside this file that need the environment; its progress goes to stderr.

    Args:
        python: The Python that has lm-eval.
        program: The program's name.
        arguments: Its arguments.
        environment: Variables that it gets beside this process's own.

    Raises:
        EdgekitError: It ended with an error, whose text it printed.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    command = [str(python), str(Path(__file__).with_name(f"{program}.py")), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, env={**inherited, **environment}, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False
        )
    except OSError as error:
        raise EdgekitError(f"{python} cannot be started: {error.strerror}", hint=f"${VARIABLE} names it") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise EdgekitError(lines[-1].strip() if lines else f"{program} ended with exit code {done.returncode}")
