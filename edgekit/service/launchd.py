"""launchd: the job's property list, its path, and `launchctl`."""

from __future__ import annotations

import contextlib
import os
import plistlib
import re
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, EdgekitError
from edgekit.machine import home_folder
from edgekit.service.spec import Scope, ServiceSpec

__all__ = ["LABEL", "domain", "job_state", "launchctl", "load_job", "plist_path", "render_plist"]

LABEL = "io.edgekit.daemon"
_RESERVE_S = 5.0


def plist_path(scope: Scope, root: Path | None) -> Path:
    """Path of the property list."""
    if scope == "system":
        return (root or Path("/")) / "Library/LaunchDaemons" / f"{LABEL}.plist"
    return (root or home_folder()) / "Library/LaunchAgents" / f"{LABEL}.plist"


def render_plist(spec: ServiceSpec) -> str:
    """Return the property list for `spec`.

    Raises:
        ConfigError: A system job has no account: launchd would run it as root.
    """
    template = files("edgekit") / "systemd" / f"{LABEL}.plist"
    job: dict[str, Any] = plistlib.loads(template.read_bytes())
    job["ProgramArguments"] = list(spec.command)
    if spec.scope == "user":
        log = str(home_folder() / "Library/Logs/edgekit.log")
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
        EdgekitError: launchctl is missing or failed.
    """
    command = ["launchctl", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, fixed words
    except OSError as error:
        raise EdgekitError("there is no launchctl on this machine") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise EdgekitError(f"`{' '.join(command)}` failed: {reason}", code="service_manager_failed")
    return done.stdout


def load_job(scope: Scope, path: Path, *, timeout_s: float | None = None, pause_s: float = 0.5) -> None:
    """Load the job from its property list, in place of an older one.

    The older one gets SIGTERM and, for `ExitTimeOut`, time for running answers to finish; until it has ended, launchd
    refuses to load the new one.

    Args:
        scope: The job's scope.
        path: The property list.
        timeout_s: Seconds to wait for the older one; `ExitTimeOut` and a reserve unless given.
        pause_s: Seconds between two attempts.

    Raises:
        EdgekitError: launchctl is missing or failed.
    """
    job = f"{domain(scope)}/{LABEL}"
    if timeout_s is None:
        timeout_s = float(plistlib.loads(path.read_bytes())["ExitTimeOut"]) + _RESERVE_S
    with contextlib.suppress(EdgekitError):  # not loaded: nothing to replace; or launchd only says that it takes time
        launchctl("bootout", job)
    end = time.monotonic() + timeout_s
    while _is_loaded(job) and time.monotonic() < end:
        time.sleep(pause_s)
    # For a moment after that launchd may still answer "Input/output error".
    end = time.monotonic() + _RESERVE_S
    while time.monotonic() < end:
        with contextlib.suppress(EdgekitError):
            launchctl("bootstrap", domain(scope), str(path))
            return
        time.sleep(pause_s)
    launchctl("bootstrap", domain(scope), str(path))


def _is_loaded(job: str) -> bool:
    try:
        launchctl("print", job)
    except EdgekitError:
        return False
    return True


def job_state(printed: str) -> tuple[str, int | None, str | None]:
    """Parse `launchctl print`: the job's state, process id and last exit code."""
    # The first match of each: later blocks describe endpoints and the like.
    found = {
        key: match[1].strip()
        for key in ("state", "pid", "last exit code")
        if (match := re.search(rf"^\s*{key} = (.+)$", printed, re.MULTILINE))
    }
    pid = found.get("pid", "")
    return found.get("state", "unknown"), int(pid) if pid.isdigit() else None, found.get("last exit code")
