"""The service's command line, and checks that its paths exist and are visible to it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.config import find_config, load_config
from edgekit.errors import ConfigError, EdgekitError
from edgekit.machine import home_folder
from edgekit.service.readable import account_of, first_unreadable

__all__ = ["Scope", "ServiceSpec", "check", "find_executable", "served_paths"]

Scope = Literal["system", "user"]

# Folders that the hardened unit hides: ProtectHome= and PrivateTmp=.
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named to refuse them


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service to install.

    Attributes:
        executable: Absolute path of the `edgekit` program.
        bundle: Absolute path of the bundle; None leaves it to the configuration.
        config: Absolute path of the configuration file; None lets the daemon search the usual places.
        scope: A system service, or a service of this user.
        run_as: Account of a system service; None means a dynamic user (systemd), and is not allowed on macOS.
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


def served_paths(spec: ServiceSpec, root: Path | None) -> tuple[Path, ...]:
    """Return the bundles that the service serves, a draft model's included, as far as they are known now.

    Args:
        spec: The service.
        root: The image that the configuration file is in; None for this machine.
    """
    named = spec.config
    if named is None and spec.scope == "system":
        named = Path("/etc/edgekit/edgekit.yaml")
    elif named is None:
        named = find_config(os.environ)
    bundles = [spec.bundle]
    if named is not None:
        file = named if root is None else root / named.relative_to("/")
        # systemd sets these for the service only.
        folders = dict.fromkeys(("CACHE_DIRECTORY", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"), "/run")
        # An invalid file is the daemon's to report.
        with contextlib.suppress(EdgekitError):
            settings = load_config(file, env={"HOME": str(home_folder()), **folders}, overrides={})
            bundles = [spec.bundle or settings.bundle, settings.generation.draft_bundle]
    return tuple(bundle for bundle in bundles if bundle is not None and bundle.is_absolute())


def find_executable() -> Path:
    """Return the `edgekit` program of this installation.

    Raises:
        ConfigError: edgekit runs from a source tree that is not installed.
    """
    beside = Path(sys.executable).parent / "edgekit"
    if beside.is_file():
        return beside
    found = shutil.which("edgekit")
    if found is None:
        raise ConfigError("the `edgekit` program is not on the PATH", hint="pip install 'edgekit-llm[daemon]'")
    return Path(found).absolute()


def check(spec: ServiceSpec, root: Path | None) -> None:
    """Reject a service that could never start.

    Args:
        spec: The service to install.
        root: The image it is installed into, which contains the paths; None for this machine.

    Raises:
        ConfigError: A path is relative, missing, contains a control character, or is hidden from the service or not
            readable by its account; or the account is invalid.
    """
    for name, path in (("executable", spec.executable), ("bundle", spec.bundle), ("configuration", spec.config)):
        if path is None:
            continue
        if not path.is_absolute():
            raise ConfigError(f"the path of the {name} must be absolute, not {path}")
        if any(ord(character) < 32 or ord(character) == 127 for character in str(path)):
            raise ConfigError(f"the path of the {name} contains a control character: {str(path)!r}")
        if root is None and not path.exists():
            raise ConfigError(f"there is no {name} at {path}")
    if spec.run_as is not None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}", spec.run_as):
            raise ConfigError(f"`{spec.run_as}` is not a valid account name")
        if spec.run_as == "root":
            raise ConfigError("a service that answers the network must not run as root", hint="leave out --run-as")
        if spec.scope == "user":
            raise ConfigError("a user service runs as that user; --run-as is for a system service")
    if root is None and spec.scope == "system" and sys.platform == "linux":
        _check_visible(spec)
    if root is None and spec.scope == "system":
        _check_readable(spec)


def _check_visible(spec: ServiceSpec) -> None:
    """The system unit sees neither homes nor /tmp; without this check it would fail with status 203 in the journal."""
    for original in (spec.executable, _interpreter(spec.executable), spec.bundle, spec.config):
        if original is None:
            continue
        for path in {original.absolute(), original.resolve()}:
            if any(path.is_relative_to(folder) for folder in _TEMPORARY):
                raise ConfigError(
                    f"the service cannot see {path}: it has a private temporary folder",
                    hint="move it to /opt or /var/lib",
                )
            if spec.run_as is None and any(path.is_relative_to(folder) for folder in _HOMES):
                raise ConfigError(
                    f"the service cannot see {path}: its account has no access to home folders",
                    hint="install it outside (python3 -m venv /opt/edgekit), or add --run-as USER, or --user",
                )


def _check_readable(spec: ServiceSpec) -> None:
    account = account_of(spec.run_as)
    if account is None:
        return  # created later; the service manager reports it otherwise
    who = f"the account {spec.run_as}" if spec.run_as else "the service's account"
    environment = spec.executable.parent.parent
    installed = environment if (environment / "pyvenv.cfg").is_file() else spec.executable
    for path in (installed, _interpreter(spec.executable), spec.config, *served_paths(spec, None)):
        found = None if path is None or not path.exists() else first_unreadable(path, account)
        if path is not None and found is not None:
            raise ConfigError(
                f"{who} cannot read {found}",
                hint=f"sudo chmod -R a+rX {path}"
                if found.is_relative_to(path.resolve())
                else f"sudo chmod a+rx {found}",
            )


def _interpreter(executable: Path) -> Path | None:
    """The Python in a console script's shebang line."""
    try:
        with executable.open("rb") as file:
            first = file.readline(512)
    except OSError:
        return None
    match = re.match(rb"#!\s*(/\S+)", first)
    return Path(match[1].decode("utf-8", "replace")) if match else None
