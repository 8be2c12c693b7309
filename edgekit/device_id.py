"""This device's default id: the host name and a suffix that is this machine's, such as `kitchen-1f0c9ab2`.

The host name alone is no id: it may be `localhost`, have no letter that is allowed in a topic, or be that of every
device cloned from one image. The suffix is a hash of the machine id, keyed as machine-id(5) asks, so that the machine
id itself is not published. The id is kept in the state folder: renaming the host does not change it, and a clone, which
is another machine, gets its own.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.machine import state_folder

__all__ = ["device_id", "is_stored", "machine_hash"]

logger = logging.getLogger(__name__)

_APPLICATION = b"edgekit device id"
_FILE = "device-id"
_NAME_CHARS, _SUFFIX_CHARS = 48, 8
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNKNOWN = "unknown"


def device_id(*, state: Path | None = None, root: Path = Path("/"), store: bool = True) -> str:
    """Return this device's id, one MQTT topic level of letters, digits, `-` and `_`.

    Args:
        state: The folder that keeps it; the state folder unless given. An account that has neither keeps none.
        root: Folder that contains /etc and /proc.
        store: Keep it if it is new.
    """
    folder = state_folder() if state is None else state
    path = None if folder is None else folder / _FILE
    machine = machine_hash(root)
    kept = None if path is None else _read(path)
    if kept is not None and kept[1] == (machine or _UNKNOWN):
        return kept[0]
    # Without a machine id, as in containers, only what is stored is stable.
    found = f"{_host_name()}-{(machine or secrets.token_hex())[:_SUFFIX_CHARS]}"
    if store and path is not None:
        _write(path, found, machine)
    return found


def is_stored() -> bool:
    """Return whether the state folder keeps an id."""
    folder = state_folder()
    return folder is not None and _read(folder / _FILE) is not None


def machine_hash(root: Path = Path("/")) -> str | None:
    """Return 64 hexadecimal digits that only this machine has; None if it has no machine id.

    A Jetson's or Raspberry Pi's serial number is hashed too: it tells clones apart whose image kept its machine id.

    Args:
        root: Folder that contains /etc and /proc.
    """
    machine = _mac_id() if sys.platform == "darwin" and root == Path("/") else _machine_id(root)
    if machine is None:
        return None
    try:
        serial = (root / "proc/device-tree/serial-number").read_bytes().strip(b"\0\n ")
    except OSError:
        serial = b""
    return hmac.new(machine.encode(), _APPLICATION + serial, hashlib.sha256).hexdigest()


def _machine_id(root: Path) -> str | None:
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        # In an image that was prepared for cloning it is empty, or `uninitialized`.
        if re.fullmatch(r"[0-9a-f]{32}", text) and text.strip("0"):
            return text
    return None


def _mac_id() -> str | None:
    program = shutil.which("ioreg")
    if program is None:
        return None
    command = [program, "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603  fixed
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'"IOPlatformUUID" = "([0-9A-Fa-f-]{36})"', done.stdout)
    return match[1].lower() if match else None


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().split(".")[0]).strip("-_")[:_NAME_CHARS]
    return "device" if name in {"", "localhost"} else name


def _read(path: Path) -> tuple[str, str] | None:
    """The stored id, and the machine that it is for."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    return (lines[0], lines[1]) if len(lines) == 2 and _ID.fullmatch(lines[0]) else None


def _write(path: Path, found: str, machine: str | None) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, f"{found}\n{machine or _UNKNOWN}\n".encode("ascii"))
    except OSError as error:
        log = logger.info if machine else logger.warning
        log("%s cannot be written (%s): the device id %s may change", path, error.strerror, found)
