"""What the service is to run, and whether it can reach it."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.errors import ConfigError

__all__ = ["Scope", "ServiceSpec", "check", "find_executable"]

Scope = Literal["system", "user"]

# What systemd hides from the hardened unit: ProtectHome= and PrivateTmp=.
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named to refuse them


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service to be.

    Attributes:
        executable: The `edgekit` program, absolute.
        bundle: Folder of the bundle to serve, absolute; None leaves it to the configuration.
        config: Configuration file, absolute; None lets the daemon look in the usual places.
        scope: The whole system's service, or this user's.
        run_as: Account of a system service; None takes one made for it (systemd), and must not be None on macOS.
    """

    executable: Path
    bundle: Path | None = None
    config: Path | None = None
    scope: Scope = "system"
    run_as: str | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The command line."""
        words = [str(self.executable), "serve"]
        if self.bundle is not None:
            words.append(str(self.bundle))
        if self.config is not None:
            words += ["--config", str(self.config)]
        return tuple(words)


def find_executable() -> Path:
    """Return the `edgekit` program of this very installation.

    Raises:
        ConfigError: It runs from a source tree that was never installed.
    """
    beside = Path(sys.executable).parent / "edgekit"
    if beside.is_file():
        return beside
    found = shutil.which("edgekit")
    if found is None:
        raise ConfigError("the `edgekit` program is not on the PATH", hint="pip install edgekit, then try again")
    return Path(found).absolute()


def check(spec: ServiceSpec, root: Path | None) -> None:
    """Refuse what could never start.

    Args:
        spec: The service to be.
        root: The image it is installed into, in which the paths lie; None for this machine.

    Raises:
        ConfigError: A path is relative, missing, holds a control character, or is hidden from the service.
    """
    for name, path in (("executable", spec.executable), ("bundle", spec.bundle), ("configuration", spec.config)):
        if path is None:
            continue
        if not path.is_absolute():
            raise ConfigError(f"the path of the {name} must be absolute, not {path}")
        if any(ord(character) < 32 or ord(character) == 127 for character in str(path)):
            raise ConfigError(f"the path of the {name} holds a control character: {str(path)!r}")
        if root is None and not path.exists():
            raise ConfigError(f"there is no {name} at {path}")
    if spec.run_as is not None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}", spec.run_as):
            raise ConfigError(f"`{spec.run_as}` is not the name of an account")
        if spec.run_as == "root":
            raise ConfigError("a service that answers the network must not run as root", hint="leave --run-as away")
        if spec.scope == "user":
            raise ConfigError("a user's service runs as that user; --run-as is for the system's service")
    if root is None and spec.scope == "system" and sys.platform == "linux":
        _check_reach(spec)


def _check_reach(spec: ServiceSpec) -> None:
    """The system unit sees neither homes nor /tmp: better said now than as exit status 203 in the journal."""
    for path in (spec.executable, _interpreter(spec.executable), spec.bundle, spec.config):
        if path is None:
            continue
        for place in {path.absolute(), path.resolve()}:
            if any(place.is_relative_to(folder) for folder in _TEMPORARY):
                raise ConfigError(
                    f"the service cannot see {place}: it has a temporary folder of its own",
                    hint="move it to /opt or /var/lib",
                )
            if spec.run_as is None and any(place.is_relative_to(folder) for folder in _HOMES):
                raise ConfigError(
                    f"the service cannot see {place}: its own account has no access to home folders",
                    hint="install it outside (python3 -m venv /opt/edgekit), or add --run-as USER, or --user",
                )


def _interpreter(executable: Path) -> Path | None:
    """The Python that a console script names in its first line."""
    try:
        with executable.open("rb") as file:
            first = file.readline(512)
    except OSError:
        return None
    match = re.match(rb"#!\s*(/\S+)", first)
    return Path(match[1].decode("utf-8", "replace")) if match else None
