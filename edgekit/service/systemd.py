"""systemd: the unit's content, its path, and `systemctl`.

The template is `systemd/edgekit.service` (or `systemd/user/`), a complete unit that a distribution can install
unchanged; this module replaces only the lines that depend on the machine.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from edgekit.errors import ConfigError, EdgekitError
from edgekit.machine import home_folder
from edgekit.service.spec import Scope, ServiceSpec, served_paths

__all__ = ["FIRST_LINES", "UNIT", "is_running", "render_unit", "systemctl", "unit_path"]

UNIT = "edgekit.service"
FIRST_LINES = ("# edgekit as a system service.", "# edgekit as a user service.")
"""How the units in `systemd/` begin."""


def unit_path(scope: Scope, root: Path | None) -> Path:
    """Path of the unit: in `/etc` for a system service, in the configuration folder for a user's."""
    if scope == "system":
        return (root or Path("/")) / "etc/systemd/system" / UNIT
    if root is not None:
        return root / "etc/systemd/user" / UNIT
    config = os.environ.get("XDG_CONFIG_HOME") or str(home_folder() / ".config")
    return Path(config) / "systemd/user" / UNIT


def render_unit(spec: ServiceSpec, root: Path | None = None) -> str:
    """Return the unit for `spec`.

    Args:
        spec: The service to install.
        root: The image whose groups to read; None for this machine.

    Raises:
        ConfigError: systemd cannot start the program under its path.
    """
    if re.search(r"[\\'\"]", str(spec.executable)):
        hint = "move it to a path without quotes and backslashes"
        raise ConfigError(f"systemd cannot start {spec.executable}", hint=hint)
    folder = files("edgekit") / "systemd"
    template = folder / UNIT if spec.scope == "system" else folder / "user" / UNIT
    unit = _set(template.read_text(encoding="utf-8"), "ExecStart", exec_line(spec.command))
    unit = _set(unit, "RequiresMountsFor", _mount_paths((spec.executable, spec.config, *served_paths(spec, root))))
    if spec.scope == "user":
        return unit
    # systemd refuses to start a unit with a group that does not exist; a headless machine may lack both.
    groups = [name for name in ("video", "render") if name in _groups(root)]
    unit = _set(unit, "SupplementaryGroups", " ".join(groups) if groups else None)
    if spec.run_as is not None:
        unit = _set(unit, "DynamicUser", None)
        unit = _set(unit, "User", spec.run_as)
        unit = _set(unit, "ProtectHome", "read-only")
    return unit


def exec_line(command: tuple[str, ...]) -> str:
    """Quote a command line for `ExecStart=`.

    Source: systemd.service(5), "Command lines": quotes and backslashes as in C; `%` starts a specifier, and `$` a
    variable in every word but the first.
    """
    words = []
    for index, word in enumerate(command):
        text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
        if index:
            text = text.replace("$", "$$")
        words.append(text if re.fullmatch(r"[\w./:@=+%$-]+", text, re.ASCII) else f'"{text}"')
    return " ".join(words)


def _mount_paths(paths: Iterable[Path | None]) -> str | None:
    """Paths for `RequiresMountsFor=`, quoted; those that systemd cannot read there are left out."""
    words = []
    for path in paths:
        text = str(path).replace("%", "%%")
        if path is None or re.search(r"[\\'\"]", text) or ".." in path.parts:
            continue
        words.append(text if re.fullmatch(r"[\w./:@=+%$-]+", text, re.ASCII) else f'"{text}"')
    return " ".join(dict.fromkeys(words)) or None


def is_running() -> bool:
    """Whether systemd manages this machine, tested as sd_booted(3) does."""
    return Path("/run/systemd/system").is_dir()


def systemctl(*arguments: str, scope: Scope, root: Path | None = None) -> str:
    """Run systemctl and return its output.

    Raises:
        EdgekitError: systemctl is missing or failed.
    """
    if shutil.which("systemctl") is None:
        raise EdgekitError("there is no systemctl on this machine", hint="run `edgekit serve` under its own supervisor")
    where = ["--root", str(root)] if root is not None else []
    # In an image, --global enables a unit for every user.
    manager = [] if scope == "system" else ["--global" if root is not None else "--user"]
    command = ["systemctl", *where, *manager, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, fixed words
    if done.returncode != 0 and arguments[0] not in {"is-enabled", "show"}:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        journal = f"journalctl {'--user ' if scope == 'user' else ''}-u {UNIT} -n 30"
        raise EdgekitError(f"`{' '.join(command)}` failed: {reason}", hint=journal, code="service_manager_failed")
    return done.stdout.strip()


def _set(unit: str, key: str, value: str | None) -> str:
    """Replace the line that sets `key`, or remove it."""
    pattern = re.compile(rf"^{key}=.*\n", re.MULTILINE)
    if len(pattern.findall(unit)) != 1:
        raise AssertionError(f"the unit must set {key} once")
    line = "" if value is None else f"{key}={value}\n"
    return pattern.sub(lambda _: line, unit)


def _groups(root: Path | None) -> set[str]:
    if root is None:
        return {entry.gr_name for entry in grp.getgrall()}
    try:
        return {line.split(":")[0] for line in (root / "etc/group").read_text().splitlines()}
    except OSError:
        return set()
