"""systemd: the unit's text, where it lies, and `systemctl`.

The text comes from `systemd/edgekit.service` (or `systemd/user/`), which is a whole unit and can be installed
as it is by a distribution; here only the lines that depend on the machine are replaced.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

from edgekit.errors import ConfigError, EdgekitError
from edgekit.service.spec import Scope, ServiceSpec

__all__ = ["UNIT", "is_running", "render_unit", "systemctl", "unit_path"]

UNIT = "edgekit.service"


def unit_path(scope: Scope, root: Path | None) -> Path:
    """Where the unit lies: `/etc` for the system's, the user's configuration folder for a user's."""
    if scope == "system":
        return (root or Path("/")) / "etc/systemd/system" / UNIT
    if root is not None:
        return root / "etc/systemd/user" / UNIT
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "systemd/user" / UNIT


def render_unit(spec: ServiceSpec, root: Path | None = None) -> str:
    """Return the unit for `spec`.

    Args:
        spec: The service to be.
        root: The image whose groups count; None for this machine.

    Raises:
        ConfigError: systemd would refuse the path of the program.
    """
    if re.search(r"[\\'\"]", str(spec.executable)):
        hint = "quotes and backslashes are not allowed there"
        raise ConfigError(f"systemd starts no program at {spec.executable}", hint=hint)
    folder = files("edgekit") / "systemd"
    template = folder / UNIT if spec.scope == "system" else folder / "user" / UNIT
    unit = _set(template.read_text(encoding="utf-8"), "ExecStart", exec_line(spec.command))
    if spec.scope == "user":
        return unit
    # systemd refuses to start a unit that names a group the machine lacks, and a headless one may lack both.
    groups = [name for name in ("video", "render") if name in _groups(root)]
    unit = _set(unit, "SupplementaryGroups", " ".join(groups) if groups else None)
    if spec.run_as is not None:
        unit = _set(unit, "DynamicUser", None)
        unit = _set(unit, "User", spec.run_as)
        unit = _set(unit, "ProtectHome", "read-only")
    return unit


def exec_line(command: tuple[str, ...]) -> str:
    """Quote a command line for `ExecStart=`.

    Source: systemd.service(5), "Command lines": quotes and backslashes as in C, `%` starts a specifier, and `$`
    a variable in every word but the first.
    """
    words = []
    for index, word in enumerate(command):
        text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
        if index:
            text = text.replace("$", "$$")
        words.append(text if re.fullmatch(r"[\w./:@=+%$-]+", text, re.ASCII) else f'"{text}"')
    return " ".join(words)


def is_running() -> bool:
    """Whether systemd manages this machine, as sd_booted(3) tells."""
    return Path("/run/systemd/system").is_dir()


def systemctl(*arguments: str, scope: Scope, root: Path | None = None) -> str:
    """Run systemctl and return its output.

    Raises:
        EdgekitError: There is no systemctl, or it failed.
    """
    if shutil.which("systemctl") is None:
        raise EdgekitError("there is no systemctl on this machine", hint="run `edgekit serve` under its own supervisor")
    where = ["--root", str(root)] if root is not None else []
    # For an image, --global is what enables a unit for every user.
    who = [] if scope == "system" else ["--global" if root is not None else "--user"]
    command = ["systemctl", *where, *who, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own words
    if done.returncode != 0 and arguments[0] not in {"is-enabled", "show"}:
        complaint = " ".join(done.stderr.split()) or f"status {done.returncode}"
        journal = f"journalctl {'--user ' if scope == 'user' else ''}-u {UNIT} -n 30"
        raise EdgekitError(f"`{' '.join(command)}` failed: {complaint}", hint=journal, code="service_manager_failed")
    return done.stdout.strip()


def _set(unit: str, key: str, value: str | None) -> str:
    """Replace the one line that sets `key`, or drop it."""
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
