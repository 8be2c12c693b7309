"""The keys as a running daemon sees them: read again when the file changes, and compared in constant time."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

from edgekit.daemon.access.key_file import read_keys
from edgekit.daemon.access.keys import ApiKey, digest_of
from edgekit.daemon.rare_log import RareLog
from edgekit.errors import ConfigError, EdgekitError

__all__ = ["KeySet", "KeyStore"]

logger = logging.getLogger(__name__)

_DECOY = ApiKey("", "decoy", secrets.token_bytes(32), "")


class KeySet:
    """The keys of one version of the file.

    Attributes:
        configured: Whether there is a file: requests then need a key.
    """

    def __init__(self, keys: Iterable[ApiKey], *, configured: bool) -> None:
        self.keys = tuple(keys)
        self.configured = configured
        self._by_name = {key.name: key for key in self.keys}

    def find(self, presented: bytes) -> ApiKey | None:
        """Return the key with this secret; it may have expired.

        Every key is compared, whatever is presented: neither time nor path tells how close it came.
        """
        digest = digest_of(presented)
        found = None
        for key in (*self.keys, _DECOY):
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def named(self, name: str) -> ApiKey | None:
        """Return the key with this name; it may have expired."""
        return self._by_name.get(name)


_NONE = KeySet((), configured=False)


class KeyStore:
    """Reads a keys file whenever it has changed; any thread may use it.

    Args:
        path: The file, which need not exist; None has no keys.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._keys = _NONE
        self._log = RareLog(logger)

    def load(self) -> KeySet:
        """Return the keys, for the start of a daemon.

        Raises:
            ConfigError: The file is damaged, or others may write it.
            EdgekitError: It cannot be read.
        """
        with self._lock:
            self._read()
            return self._keys

    def current(self) -> KeySet:
        """Return the keys; those from before if the file cannot be read any more, which is logged."""
        with self._lock:
            try:
                self._read()
            except EdgekitError as error:
                self._log.warning(f"the API keys from before stay in use: {error.message}")
            return self._keys

    def _read(self) -> None:
        if self.path is None:
            return
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode)
            if seen == self._seen:
                return
            keys = KeySet(read_keys(self.path), configured=True)
        except FileNotFoundError:
            # A file that is removed takes its keys with it.
            seen, keys = None, _NONE
        except OSError as error:
            hint = "it must be readable by the daemon's account"
            wrong = ConfigError if isinstance(error, PermissionError) else EdgekitError
            raise wrong(f"cannot read {self.path}: {error.strerror}", hint=hint) from error
        if seen != self._seen and self._keys is not _NONE:
            logger.info("read the API keys again; their number is %d", len(keys.keys))
        self._seen, self._keys = seen, keys
