"""What an installed service is configured to do, read from its file: the configuration, and the folder of its state."""

from __future__ import annotations

import contextlib
import os
import plistlib
import re
import shlex
from itertools import pairwise
from pathlib import Path

from edgekit.config import DaemonConfig, load_config
from edgekit.machine import home_folder, state_folder
from edgekit.service.spec import Scope

__all__ = ["configuration_of", "state_folder_of"]

_SYSTEM_CONFIG = Path("/etc/edgekit/edgekit.yaml")
_SYSTEM_STATE = Path("/var/lib/edgekit")
# Where the unit's LoadCredential= takes the credentials from: systemd shows its copies to the daemon only.
_CREDENTIALS = "/etc/edgekit"


def configuration_of(file: Path, scope: Scope) -> DaemonConfig:
    """Return the configuration of an installed service.

    Args:
        file: Its unit or property list.
        scope: Its scope.

    Raises:
        ConfigError: The configuration is invalid or gone.
        OSError: The unit or the configuration cannot be read.
    """
    words = _command(file)
    named = next((Path(after) for word, after in pairwise(words) if word == "--config"), None)
    if named is None and scope == "system" and _SYSTEM_CONFIG.is_file():
        named = _SYSTEM_CONFIG
    in_unit = scope == "system" and file.suffix == ".service"
    env = {
        "HOME": str(_SYSTEM_STATE if in_unit else home_folder()),
        "CREDENTIALS_DIRECTORY": _CREDENTIALS,
        "STATE_DIRECTORY": str(_SYSTEM_STATE),
        "CACHE_DIRECTORY": "/var/cache/edgekit",
        "RUNTIME_DIRECTORY": "/run/edgekit",
    }
    if scope == "user" and os.environ.get("XDG_CONFIG_HOME"):
        env["XDG_CONFIG_HOME"] = os.environ["XDG_CONFIG_HOME"]
    return load_config(named, env=env, overrides={})


def state_folder_of(file: Path, scope: Scope) -> Path | None:
    """Return the folder of an installed service's state; None if it has none.

    Args:
        file: Its unit or property list.
        scope: Its scope.
    """
    return _SYSTEM_STATE if scope == "system" and file.suffix == ".service" else state_folder()


def _command(file: Path) -> list[str]:
    """The command line in a unit or a property list."""
    data = file.read_bytes()
    if file.suffix == ".plist":
        with contextlib.suppress(plistlib.InvalidFileException, ValueError):
            return [str(word) for word in plistlib.loads(data).get("ProgramArguments", [])]
        return []
    match = re.search(r"^ExecStart=(.+)$", data.decode("utf-8", errors="replace"), re.MULTILINE)
    if match is None:
        return []
    # As `exec_line` has written it.
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(match[1])]
