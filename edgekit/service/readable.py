"""Checks that the service's account can read what it serves: files exported under umask 077 are for one account."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Account", "account_of", "first_unreadable"]


@dataclass(frozen=True, slots=True)
class Account:
    """An account by its numbers.

    Attributes:
        uid: None for a dynamic user, which owns no file yet.
        gids: All its groups.
    """

    uid: int | None
    gids: frozenset[int]


def account_of(name: str | None) -> Account | None:
    """Return the account of this name, a dynamic user's for None; None if there is no such account."""
    if name is None:
        return Account(None, frozenset())
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def first_unreadable(path: Path, account: Account) -> Path | None:
    """Return the first file or folder in the way of reading `path` and all below it; None if there is none.

    Access control lists are not evaluated: a file that has one counts as readable.
    """
    resolved = path.resolve()
    for folder in reversed(resolved.parents):
        if not _allows(folder, account, stat.S_IXOTH):
            return folder
    for entry in _below(resolved):
        wanted = stat.S_IROTH | (stat.S_IXOTH if entry.is_dir() else 0)
        if not _allows(entry, account, wanted):
            return entry
    return None


def _below(path: Path) -> Iterator[Path]:
    yield path
    for root, folders, files in os.walk(path):
        if "__pycache__" in folders:
            folders.remove("__pycache__")  # Python does without
        yield from (Path(root) / name for name in sorted((*folders, *files)))


def _allows(path: Path, account: Account, wanted: int) -> bool:
    try:
        status = path.stat()
        if account.uid == 0 or (hasattr(os, "listxattr") and "system.posix_acl_access" in os.listxattr(path)):
            return True
    except OSError:
        return True  # not ours to judge: gone, a broken link, or hidden from this account too
    mode = status.st_mode
    if status.st_uid == account.uid:
        mode >>= 6
    elif status.st_gid in account.gids:
        mode >>= 3
    return mode & wanted == wanted
