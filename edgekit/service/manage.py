"""Install, uninstall and status, on whichever service manager this machine has."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.service import launchd, systemd
from edgekit.service.spec import Scope, ServiceSpec, check

__all__ = ["Installed", "ServiceStatus", "install", "service_file", "status", "uninstall"]


@dataclass(frozen=True, slots=True)
class Installed:
    """What `install` did.

    Attributes:
        path: The unit or property list.
        started: Whether the service runs now; False where it was put into an image.
        hint: What the user may still want to do.
    """

    path: Path
    started: bool
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How the service is.

    Attributes:
        manager: "systemd" or "launchd".
        scope: "system" or "user".
        path: Where the unit or property list lies, or would.
        installed: Whether it is there.
        enabled: Whether it starts by itself; None if the manager does not say.
        state: "active", "activating", "failed", "inactive" and so on, as the manager words it.
        text: What the daemon says of itself, or how it last ended.
        pid: Main process.
        restarts: Automatic restarts since it was started.
        hint: The command that tells more or mends it.
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
    """Return where `install` would write, and what; nothing is touched.

    Raises:
        ConfigError: `spec` could never start.
    """
    check(spec, root)
    if _on_macos():
        return launchd.plist_path(spec.scope, root), launchd.render_plist(spec)
    return systemd.unit_path(spec.scope, root), systemd.render_unit(spec, root)


def install(spec: ServiceSpec, *, root: Path | None = None, start: bool = True) -> Installed:
    """Write the service, enable it, and start it; an older one is replaced.

    Args:
        spec: The service to be.
        root: An image to install into: written and enabled there, started nowhere.
        start: Start it now, and wait until the daemon says that it is ready.

    Raises:
        ConfigError: `spec` could never start.
        EdgekitError: The user may not, there is no service manager, or it refused.
    """
    path, text = service_file(spec, root=root)
    if root is None:
        _require_manager(spec.scope)
    _write(path, text, spec)
    if _on_macos():
        if root is None and start:
            with contextlib.suppress(EdgekitError):  # not loaded: nothing to replace
                launchd.launchctl("bootout", f"{launchd.domain(spec.scope)}/{launchd.LABEL}")
            launchd.launchctl("bootstrap", launchd.domain(spec.scope), str(path))
        return Installed(path, root is None and start)
    if root is None:
        systemd.systemctl("daemon-reload", scope=spec.scope)
    systemd.systemctl("enable", systemd.UNIT, scope=spec.scope, root=root)
    if root is not None or not start:
        return Installed(path, started=False)
    systemd.systemctl("restart", systemd.UNIT, scope=spec.scope)
    linger = "it ends when you log out; `loginctl enable-linger` keeps it" if spec.scope == "user" else None
    return Installed(path, started=True, hint=linger)


def uninstall(scope: Scope = "system", *, root: Path | None = None) -> Path | None:
    """Stop the service, disable it and remove its file; what it stored stays.

    Returns:
        The file removed, or None if there was none.

    Raises:
        EdgekitError: The user may not, or the service manager refused.
    """
    path = launchd.plist_path(scope, root) if _on_macos() else systemd.unit_path(scope, root)
    if not path.exists():
        return None
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
    """Return how the service is; that there is none is an answer, not an error."""
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
    wanted = ("ActiveState", "UnitFileState", "StatusText", "MainPID", "NRestarts", "Result")
    shown = systemd.systemctl("show", systemd.UNIT, *(f"-p{key}" for key in wanted), scope=scope)
    said = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    result = said.get("Result", "success")
    state = said.get("ActiveState", "unknown")
    return ServiceStatus(
        "systemd",
        scope,
        path,
        installed=True,
        enabled=said.get("UnitFileState") == "enabled",
        state=state,
        text=said.get("StatusText") or (None if result == "success" else f"last result: {result}"),
        pid=int(said.get("MainPID") or 0) or None,
        restarts=int(said.get("NRestarts") or 0),
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
                "a service of the whole system needs root",
                hint="use sudo, or add --user to make it a service of your own account",
                code="permission_denied",
            )
        return
    raise EdgekitError(
        "systemd is not running here, as in most containers",
        hint="run `edgekit serve` directly, look at the unit with --print, or install it into an image with --root DIR",
        code="no_service_manager",
    )


def _write(path: Path, text: str, spec: ServiceSpec) -> None:
    """Write beside, then rename: the manager never reads half a unit."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".edgekit-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except PermissionError as error:
        raise _denied(path, spec.scope) from error
    except OSError as error:
        raise EdgekitError(f"{path} cannot be written: {error.strerror}") from error


def _denied(path: Path, scope: Scope) -> EdgekitError:
    hint = "use sudo, or add --user" if scope == "system" else None
    return EdgekitError(f"you may not write to {path.parent}", hint=hint, code="permission_denied")
