"""launchd: the job's property list, where it lies, and `launchctl`."""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, EdgekitError
from edgekit.service.spec import Scope, ServiceSpec

__all__ = ["LABEL", "domain", "job_state", "launchctl", "plist_path", "render_plist"]

LABEL = "io.edgekit.daemon"


def plist_path(scope: Scope, root: Path | None) -> Path:
    """Where the property list lies."""
    if scope == "system":
        return (root or Path("/")) / "Library/LaunchDaemons" / f"{LABEL}.plist"
    return (root or Path.home()) / "Library/LaunchAgents" / f"{LABEL}.plist"


def render_plist(spec: ServiceSpec) -> str:
    """Return the property list for `spec`.

    Raises:
        ConfigError: A system job without an account: launchd would run it as root.
    """
    template = files("edgekit") / "systemd" / f"{LABEL}.plist"
    job: dict[str, Any] = plistlib.loads(template.read_bytes())
    job["ProgramArguments"] = list(spec.command)
    if spec.scope == "user":
        log = str(Path.home() / "Library/Logs/edgekit.log")
        job["StandardErrorPath"] = job["StandardOutPath"] = log
    elif spec.run_as is None:
        raise ConfigError("a system service needs an account on macOS", hint="add --run-as USER, or --user")
    else:
        job["UserName"] = spec.run_as
    return plistlib.dumps(job, sort_keys=False).decode("utf-8")


def domain(scope: Scope) -> str:
    """The launchd domain that the job belongs to."""
    return "system" if scope == "system" else f"gui/{os.getuid()}"


def launchctl(*arguments: str) -> str:
    """Run launchctl and return its output.

    Raises:
        EdgekitError: It failed.
    """
    command = ["launchctl", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own words
    except OSError as error:
        raise EdgekitError("there is no launchctl on this machine") from error
    if done.returncode != 0:
        complaint = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise EdgekitError(f"`{' '.join(command)}` failed: {complaint}", code="service_manager_failed")
    return done.stdout


def job_state(printed: str) -> tuple[str, int | None, str | None]:
    """Read `launchctl print`: the job's state, its process id, and how it last ended."""
    # The first of each: later blocks describe endpoints and the like.
    found = {
        key: match[1].strip()
        for key in ("state", "pid", "last exit code")
        if (match := re.search(rf"^\s*{key} = (.+)$", printed, re.MULTILINE))
    }
    pid = found.get("pid", "")
    return found.get("state", "unknown"), int(pid) if pid.isdigit() else None, found.get("last exit code")
