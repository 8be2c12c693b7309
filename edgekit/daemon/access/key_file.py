"""The keys file: adds, lists and revokes keys, while a daemon reads it.

It is replaced as a whole, with mode 0600, so that a reader never sees half of it. A file without keys still means that
keys are required; only without the file does a daemon on loopback answer everyone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.daemon.access.keys import ApiKey
from edgekit.errors import ConfigError
from edgekit.machine import state_folder

__all__ = ["MAX_KEYS", "add_key", "default_keys_file", "read_keys", "revoke_key"]

MAX_KEYS = 1000
_MAX_BYTES = 4 << 20
_VERSION = 1
_SERVICE_STATE = Path("/var/lib/edgekit")


def default_keys_file(service_state: Path = _SERVICE_STATE) -> Path | None:
    """Return `keys.json` in the state folder; None for an account without one.

    For root it is the system service's, if there is one, so that `sudo edgekit key add` changes the keys of that.

    Args:
        service_state: The system service's state folder.
    """
    own = any(os.environ.get(name) for name in ("EDGEKIT_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"))
    if os.geteuid() == 0 and not own and service_state.is_dir():
        return service_state / "keys.json"
    folder = state_folder()
    return None if folder is None else folder / "keys.json"


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    Raises:
        ConfigError: It is not a keys file, or others may write it.
        OSError: It cannot be read; FileNotFoundError if it does not exist.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{path} can be written by other accounts", hint=f"chmod 600 {path}")
        data = file.read(_MAX_BYTES + 1)
    try:
        return _parse(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON", hint=_BACKUP) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint or _BACKUP) from error


def _parse(data: bytes) -> tuple[ApiKey, ...]:
    if len(data) > _MAX_BYTES:
        raise ConfigError("too large")
    body = json.loads(data)
    if not isinstance(body, dict) or body.get("version") != _VERSION or not isinstance(body.get("keys"), list):
        raise ConfigError(f"not a keys file of version {_VERSION}")
    keys = tuple(ApiKey.from_json(entry) for entry in body["keys"])
    if len({key.name for key in keys}) != len(keys):
        raise ConfigError("two keys have the same name")
    return keys


_BACKUP = "restore it, or remove it and make new keys with `edgekit key add NAME`"


def add_key(path: Path, key: ApiKey) -> None:
    """Add a key, and make the file and its folder if they are missing.

    Raises:
        ConfigError: There is a key of this name, there are too many, or the file is damaged or cannot be written.
    """
    with _changing(path) as keys:
        if any(other.name == key.name for other in keys):
            raise ConfigError(
                f"there is already a key `{key.name}`", hint=f"edgekit key revoke {key.name}, or take another name"
            )
        if len(keys) >= MAX_KEYS:
            raise ConfigError(f"there are already {MAX_KEYS} keys", hint="edgekit key revoke NAME")
        keys.append(key)


def revoke_key(path: Path, name: str) -> ApiKey:
    """Remove the key with a name or an id, and return it.

    Raises:
        ConfigError: There is none, or the file is damaged or cannot be written.
    """
    with _changing(path) as keys:
        # A name comes first: another key's id may look like it.
        matching = [key for key in keys if key.name == name] or [key for key in keys if key.id == name]
        if not matching:
            raise ConfigError(f"there is no key `{name}` in {path}", hint="edgekit key list")
        keys.remove(matching[0])
    return matching[0]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """Lock the folder, yield the keys, and write them if no error was raised."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"cannot use the folder {path.parent}: {error.strerror}", hint=_OTHER_ACCOUNT) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            keys = list(read_keys(path))
        except FileNotFoundError:
            keys = []
        yield keys
        body = {"version": _VERSION, "keys": [key.to_json() for key in keys]}
        replace_file(path, json.dumps(body, indent=1).encode() + b"\n")
        if os.geteuid() == 0:
            # Root adds keys for a service that runs as the folder's owner.
            owner = os.fstat(folder)
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise ConfigError(f"cannot change {path}: {error.strerror}", hint=_OTHER_ACCOUNT) from error
    finally:
        os.close(folder)


_OTHER_ACCOUNT = "run it as the daemon's account or as root, or name another file with --file"
