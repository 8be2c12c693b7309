"""Runs a program that runs code which a model wrote: without network, on a read-only file system, with limits.

    python -I -S sandbox.py FOLDER isolated|limited SECONDS PROGRAM [ARGUMENTS…]

FOLDER is where the program may write: in memory, 64 MiB, when it is `isolated`; that needs Linux 5.12 and permission to
create user namespaces, and the exit code is 125 without. `limited` sets the limits alone, for other systems: the
program can then reach the network, and write wherever the user can.

The isolation is that of the kernel's namespaces: no network device, every mount read-only, no device node but
/dev/null, no socket below /run, no signal to a process outside, no privilege. It holds against code that is wrong, not
against an attacker who knows a fault of the kernel; the user's files can be read, and sent nowhere.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

UNAVAILABLE = 125
"""Exit code: this system does not allow the isolation."""

_MEMORY_BYTES = 2 << 30
_FILE_BYTES = 16 << 20

# linux/sched.h: mount, UTS, IPC, user, PID and network namespaces.
_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
# sys/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x1, 0x2, 0x4, 0x1000, 0x4000, 0x40000
# linux/mount.h and linux/fcntl.h; the number is the same on x86_64 and aarch64.
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x1, 0x2, 0x4
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_UNPRIVILEGED = 65534


def main() -> None:
    """Set the limits and the isolation, and run the program."""
    folder, kind, seconds, *command = sys.argv[1:]
    if kind == "isolated":
        try:
            _isolate(Path(folder))
        except (OSError, AttributeError) as error:
            print(f"no isolation: {error}", file=sys.stderr)
            sys.exit(UNAVAILABLE)
    _limit(int(seconds))
    os.chdir(folder)
    os.execve(command[0], command, {"PATH": os.defpath, "TMPDIR": folder, "HOME": folder})  # noqa: S606


def _limit(seconds: int) -> None:
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = _MEMORY_BYTES
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


def _isolate(folder: Path) -> None:
    """Move this process into namespaces of its own.

    Raises:
        OSError: The system does not allow it.
        AttributeError: This is not Linux.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    def mount(source: bytes, target: str, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
        call("mount", source, target.encode(), kind, ctypes.c_ulong(flags), data)

    def set_attributes(path: str, flags: int, add: int, remove: int) -> None:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
        attributes = struct.pack("QQQQ", add, remove, 0, 0)
        size = ctypes.c_size_t(len(attributes))
        call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, size)

    user, group = os.getuid(), os.getgid()
    call("unshare", _NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    # Not root within: the program then starts without the privileges that the mounts below need.
    Path("/proc/self/uid_map").write_text(f"{_UNPRIVILEGED} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_UNPRIVILEGED} {group} 1", encoding="ascii")
    mount(b"none", "/", None, _MS_REC | _MS_PRIVATE)
    mount(b"/dev/null", "/dev/null", None, _MS_BIND)
    set_attributes("/", _AT_RECURSIVE, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0)
    set_attributes("/dev/null", 0, 0, _ATTR_NODEV)
    # Sockets of the system's services are not protected by a read-only file system.
    if Path("/run").is_dir():
        mount(b"tmpfs", "/run", b"tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    mount(b"tmpfs", str(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"size=64m,nr_inodes=10000,mode=0700")
    call("prctl", _PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _become_first_process(call)


def _become_first_process(call: Callable[..., None]) -> None:
    """Continue as the first process of the new PID namespace: when it ends, all it started end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", _PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))


if __name__ == "__main__":
    main()
