"""Install, uninstall and status, with systemd or launchd."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.errors import EdgekitError
from edgekit.service import launchd, systemd
from edgekit.service.spec import Scope, ServiceSpec, check

__all__ = ["Installed", "ServiceStatus", "install", "installed_file", "service_file", "status", "uninstall"]


@dataclass(frozen=True, slots=True)
class Installed:
    """The result of `install`.

    Attributes:
        path: The unit or property list.
        started: Whether the service is running; False in an image.
        hint: A further step for the user.
    """

    path: Path
    started: bool
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """State of the service.

    Attributes:
        manager: "systemd" or "launchd".
        scope: "system" or "user".
        path: Path of the unit or property list, existing or not.
        installed: Whether that file exists.
        enabled: Whether the service starts at boot or login; None if the manager does not report it.
        state: "active", "activating", "failed", "inactive" and so on, as the manager reports it.
        text: The daemon's status text, or the last result.
        pid: Process id of the main process.
        restarts: Automatic restarts since it was started.
        hint: The command that shows more or fixes it.
    """

    manager: str
    scope: Scope
    path: Path
    installed: bool
    enabled: bool | None = None
    state: str = "not installed"
    text: str | None = None
    pid: int | None = None
    restarts: int | None = None
    hint: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain JSON-able values."""
        return {**asdict(self), "path": str(self.path)}


def service_file(spec: ServiceSpec, *, root: Path | None = None) -> tuple[Path, str]:
    """Return the path and content that `install` would write; nothing is changed.

    Raises:
        ConfigError: The service could never start.
    """
    check(spec, root)
    if _on_macos():
        return launchd.plist_path(spec.scope, root), launchd.render_plist(spec)
    return systemd.unit_path(spec.scope, root), systemd.render_unit(spec, root)


def install(spec: ServiceSpec, *, root: Path | None = None, start: bool = True) -> Installed:
    """Write, enable and start the service, replacing an older one.

    Args:
        spec: The service to install.
        root: An image to install into: the service is enabled there but not started.
        start: Start it now and wait until the daemon reports that it is ready.

    Raises:
        ConfigError: The service could never start.
        EdgekitError: Permission denied, a service file that edgekit did not write, no service manager, or the service
            manager failed.
    """
    path, text = service_file(spec, root=root)
    _check_ours(path)
    if root is None:
        _require_manager(spec.scope)
    _write(path, text, spec)
    if _on_macos():
        if root is None and start:
            launchd.load_job(spec.scope, path)
        return Installed(path, root is None and start)
    if root is None:
        systemd.systemctl("daemon-reload", scope=spec.scope)
    systemd.systemctl("enable", systemd.UNIT, scope=spec.scope, root=root)
    if root is not None or not start:
        return Installed(path, started=False)
    systemd.systemctl("restart", systemd.UNIT, scope=spec.scope)
    linger = "it ends when you log out; `loginctl enable-linger` keeps it" if spec.scope == "user" else None
    return Installed(path, started=True, hint=linger)


def installed_file(scope: Scope, root: Path | None = None) -> Path | None:
    """Return the unit or property list of an installed service; None if none is installed.

    Args:
        scope: Its scope.
        root: The image that it is in; None for this machine.
    """
    path = launchd.plist_path(scope, root) if _on_macos() else systemd.unit_path(scope, root)
    return path if path.exists() or path.is_symlink() else None


def uninstall(scope: Scope = "system", *, root: Path | None = None) -> Path | None:
    """Stop and disable the service and remove its file; stored data stays.

    Returns:
        The removed file, or None if the service was not installed.

    Raises:
        EdgekitError: Permission denied, a service file that edgekit did not write, or the service manager failed.
    """
    path = installed_file(scope, root)
    if path is None:
        return None
    _check_ours(path)
    if root is None:
        _require_manager(scope)
    if not os.access(path.parent, os.W_OK):
        raise _denied(path, scope)
    if _on_macos():
        if root is None:
            with contextlib.suppress(EdgekitError):  # it was not loaded
                launchd.launchctl("bootout", f"{launchd.domain(scope)}/{launchd.LABEL}")
        path.unlink()
        return path
    systemd.systemctl("disable", *([] if root else ["--now"]), systemd.UNIT, scope=scope, root=root)
    path.unlink()
    if root is None:
        systemd.systemctl("daemon-reload", scope=scope)
    return path


def status(scope: Scope = "system", *, root: Path | None = None) -> ServiceStatus:
    """Return the state of the service, installed or not."""
    if _on_macos():
        return _launchd_status(scope, root)
    path = systemd.unit_path(scope, root)
    if not path.exists():
        return ServiceStatus("systemd", scope, path, installed=False, hint="edgekit service install")
    if root is not None or not systemd.is_running():
        enabled = systemd.systemctl("is-enabled", systemd.UNIT, scope=scope, root=root or Path("/")) == "enabled"
        return ServiceStatus(
            "systemd", scope, path, installed=True, enabled=enabled, state="systemd is not running here"
        )
    keys = ("ActiveState", "UnitFileState", "StatusText", "MainPID", "NRestarts", "Result")
    output = systemd.systemctl("show", systemd.UNIT, *(f"-p{key}" for key in keys), scope=scope)
    properties = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    result = properties.get("Result", "success")
    state = properties.get("ActiveState", "unknown")
    return ServiceStatus(
        "systemd",
        scope,
        path,
        installed=True,
        enabled=properties.get("UnitFileState") == "enabled",
        state=state,
        text=properties.get("StatusText") or (None if result == "success" else f"last result: {result}"),
        pid=int(properties.get("MainPID") or 0) or None,
        restarts=int(properties.get("NRestarts") or 0),
        hint=None if state == "active" else f"journalctl {'--user ' if scope == 'user' else ''}-u {systemd.UNIT} -n 30",
    )


def _launchd_status(scope: Scope, root: Path | None) -> ServiceStatus:
    path = launchd.plist_path(scope, root)
    if not path.exists():
        return ServiceStatus("launchd", scope, path, installed=False, hint="edgekit service install")
    try:
        printed = launchd.launchctl("print", f"{launchd.domain(scope)}/{launchd.LABEL}")
    except EdgekitError:
        return ServiceStatus("launchd", scope, path, installed=True, state="not loaded", hint="edgekit service install")
    state, pid, last = launchd.job_state(printed)
    text = f"last exit code {last}" if last else None
    return ServiceStatus("launchd", scope, path, installed=True, enabled=True, state=state, text=text, pid=pid)


def _on_macos() -> bool:
    return sys.platform == "darwin"


def _require_manager(scope: Scope) -> None:
    if _on_macos() or systemd.is_running():
        if scope == "system" and os.geteuid() != 0:
            raise EdgekitError(
                "a system service needs root",
                hint="use sudo, or add --user to install it for your own account",
                code="permission_denied",
            )
        return
    raise EdgekitError(
        "systemd is not running here, as in most containers",
        hint="run `edgekit serve` directly, show the unit with --print, or install it into an image with --root DIR",
        code="no_service_manager",
    )


def _check_ours(path: Path) -> None:
    """Refuse to replace or remove a service file that `install` did not write, or a link such as a masked unit."""
    if path.is_symlink():
        raise EdgekitError(
            f"{path} is a link to {path.readlink()}",
            hint=f"remove it first; if it was masked: systemctl unmask {path.name}",
        )
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgekitError(f"{path} cannot be read: {error.strerror}") from error
    marks = (f"<string>{launchd.LABEL}</string>",) if path.suffix == ".plist" else systemd.FIRST_LINES
    if not any(mark in text for mark in marks):
        raise EdgekitError(f"{path} was not written by edgekit", hint="move it away, then install the service")


def _write(path: Path, text: str, spec: ServiceSpec) -> None:
    """Replace a unit as a whole: the service manager never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(), mode=0o644)
    except PermissionError as error:
        raise _denied(path, spec.scope) from error
    except OSError as error:
        raise EdgekitError(f"{path} cannot be written: {error.strerror}") from error


def _denied(path: Path, scope: Scope) -> EdgekitError:
    hint = "use sudo, or add --user" if scope == "system" else None
    return EdgekitError(f"no permission to write to {path.parent}", hint=hint, code="permission_denied")
