"""Stores blocks of KV cache on disk, as a cache that outlives the process.

    FOLDER/prefix/            0700
        edgekit-prefix-cache  marks the folder as this cache's; locked while a process uses it
        MODEL-KEY.kv          0600, one block each; the modification time is the time of last use
        writing.tmp           the block being written; left by a killed process, it is removed at the next start

Only files with these names are removed, those of other models among them. A second process runs without the folder, and
so does one that finds a folder which is not the cache's (see `owned_folder`).

The files are the index: opening the store reads their names, sizes and times; contents are read on demand, and verified
each time. A separate thread writes from a bounded queue; saving never blocks. If the disk is full, read-only or
inaccessible, the store logs it once and pauses writing.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.generation.prefix.block_file import (
    HEADER_BYTES,
    DamagedBlockError,
    fingerprint_digest,
    read_block,
    write_block,
)
from edgekit.generation.prefix.lru import Lru
from edgekit.owned_folder import ForeignFolderError, lock_folder

__all__ = ["QUEUE_BYTES", "DiskStats", "DiskStore"]

logger = logging.getLogger(__name__)

_PAGE = 4096
# Pause after a failed write: disks get cleaned up, and remounted.
_RETRY_S = 300.0
_MIB = 1 << 20
QUEUE_BYTES = 128 * _MIB
"""Default limit of the write queue."""
_MARKER = "edgekit-prefix-cache"
_TEMPORARY = "writing.tmp"
_BLOCK_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{64})\.kv")


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Counters since the start, and current sizes.

    Attributes:
        blocks: Blocks on disk now.
        used_bytes: Bytes that they occupy on disk, in full pages.
        read_bytes: KV cache read and verified.
        written_bytes: KV cache written.
        evictions: Blocks evicted.
        damaged: Blocks removed because they were damaged or unreadable.
        dropped: Blocks not written because the queue was full or the disk failed.
    """

    blocks: int
    used_bytes: int
    read_bytes: int
    written_bytes: int
    evictions: int
    damaged: int
    dropped: int


class DiskStore:
    """A folder of blocks; thread-safe.

    Args:
        folder: Created if missing; the store uses its subfolder `prefix`, if that is missing, empty or its own.
        max_bytes: Maximum bytes on disk at any time, the block being written included.
        fingerprint: The model's; blocks of other models are removed.
        queue_bytes: Maximum KV cache in the write queue; beyond it blocks are dropped.
    """

    def __init__(self, folder: Path, *, max_bytes: int, fingerprint: str, queue_bytes: int = QUEUE_BYTES) -> None:
        self._folder = folder / "prefix"
        self._max_bytes = max_bytes
        self._queue_bytes = queue_bytes
        self._fingerprint = fingerprint_digest(fingerprint)
        self._tag = self._fingerprint[:8].hex()
        self._changed = threading.Condition()
        self._index: Lru[None] = Lru()
        # Files that could not be removed: they count towards the size, and are not served.
        self._unremovable: set[bytes] = set()
        # A key: write its block. A chain: touch its blocks.
        self._queue: deque[bytes | tuple[bytes, ...]] = deque()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._busy = False
        self._closing = False
        self._deadline = 0.0
        self._paused_until = 0.0
        self._reading = 0
        self._stalled = False
        self._warned = False
        self._stamp = 0
        self._read_bytes = self._written_bytes = self._evictions = self._damaged = self._dropped = 0
        self._lock: int | None = None
        self._writer: threading.Thread | None = None
        try:
            self._open()
        except (OSError, ForeignFolderError) as error:
            self._closing = True
            self._release()
            reason: object = (isinstance(error, OSError) and error.strerror) or error
            if isinstance(error, BlockingIOError):
                reason = "another process uses it"
            logger.warning("prefixes are not cached on disk: %s: %s", self._folder, reason)
            return
        self._writer = threading.Thread(target=self._work, name="prefix-writer", daemon=True)
        self._writer.start()

    @property
    def active(self) -> bool:
        """Whether the folder was opened and `close` has not been called."""
        return not self._closing

    def __contains__(self, key: bytes) -> bool:
        with self._changed:
            return not (self._closing or self._stalled) and (key in self._pending or self._has(key))

    def capacity(self, payload_bytes: int) -> int:
        """Return how many blocks of this size fit."""
        return self._max_bytes // _on_disk(HEADER_BYTES + payload_bytes)

    def get(self, key: bytes) -> bytes | None:
        """Return a block's KV cache, verified; None if it is absent. A damaged one is removed."""
        with self._changed:
            queued = self._pending.get(key)
            if queued is not None:
                return queued
            if self._closing or self._stalled or not self._has(key):
                return None
            self._reading += 1
        try:
            payload = self._read(key)
        finally:
            with self._changed:
                self._reading -= 1
                if not self._reading:
                    self._stalled = False
        return payload

    def mark_stalled(self) -> None:
        """Report a read that does not return: nothing more is read until it does."""
        with self._changed:
            self._stalled = self._reading > 0

    def put(self, key: bytes, payload: bytes) -> bool:
        """Queue a block for writing, without blocking.

        Returns:
            Whether it is stored or queued; False if the queue is full, writing is paused, or it is too large.
        """
        size = _on_disk(HEADER_BYTES + len(payload))
        with self._changed:
            if self._closing or size > self._max_bytes or time.monotonic() < self._paused_until:
                return False
            if key in self._pending or self._has(key):
                return True
            if self._pending_bytes + len(payload) > self._queue_bytes:
                self._dropped += 1
                return False
            self._pending[key] = payload
            self._pending_bytes += len(payload)
            self._queue.append(key)
            self._changed.notify_all()
            return True

    def touch(self, chain: Sequence[bytes]) -> None:
        """Record that these blocks, in the order of their chain, were used; takes effect after the queued writes."""
        with self._changed:
            if not self._closing and len(self._queue) < 10_000 and time.monotonic() >= self._paused_until:
                self._queue.append(tuple(chain))
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the queue has been processed; returns False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def stats(self) -> DiskStats:
        """Return the counters."""
        with self._changed:
            return DiskStats(
                blocks=len(self._index) - len(self._unremovable),
                used_bytes=self._index.used,
                read_bytes=self._read_bytes,
                written_bytes=self._written_bytes,
                evictions=self._evictions,
                damaged=self._damaged,
                dropped=self._dropped,
            )

    def close(self, flush_s: float = 5.0) -> None:
        """Write queued blocks for at most `flush_s`, and release the folder. Idempotent.

        A write that hangs in a system call is abandoned with its thread.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._deadline = time.monotonic() + flush_s
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(flush_s + 0.5)

    def _open(self) -> None:
        self._lock = lock_folder(self._folder, _MARKER, setting="prefix_folder")
        # Prompts are private, even if the folder already existed.
        self._folder.chmod(0o700)
        found = []
        removed = foreign = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name == _MARKER:
                    continue
                match = _BLOCK_NAME.fullmatch(entry.name)
                if not (match or entry.name == _TEMPORARY) or entry.is_dir(follow_symlinks=False):
                    foreign += 1
                    continue
                status = entry.stat(follow_symlinks=False)
                current = match is not None and match[1] == self._tag and status.st_size > HEADER_BYTES
                if match and current and entry.is_file(follow_symlinks=False):
                    found.append((status.st_mtime_ns, bytes.fromhex(match[2]), status.st_size))
                else:
                    Path(entry.path).unlink()
                    removed += 1
        if removed:
            logger.info("removed %d files of other models or unfinished ones from %s", removed, self._folder)
        if foreign:
            logger.warning("%s has %d entries that are not of the prefix cache; they stay", self._folder, foreign)
        for stamp, key, size in sorted(found):
            self._index.put(key, None, _on_disk(size))
            # New times continue after the latest one, whatever the clock says: small devices boot in 1970.
            self._stamp = stamp
        self._evict_for(0)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{self._tag}-{key.hex()}.kv"

    def _has(self, key: bytes) -> bool:
        return key in self._index and key not in self._unremovable

    def _read(self, key: bytes) -> bytes | None:
        try:
            payload = read_block(self._path(key), fingerprint=self._fingerprint, key=key)
        except FileNotFoundError:  # evicted meanwhile, or removed from outside
            with self._changed:
                self._index.remove(key)
            return None
        except (DamagedBlockError, OSError) as error:
            logger.warning("a damaged prefix on disk is removed: %s", error)
            self._discard(key)
            return None
        with self._changed:
            self._read_bytes += len(payload)
        return payload

    def _discard(self, key: bytes) -> None:
        with self._changed:
            self._damaged += 1
            self._unremovable.add(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            self._fail(error)
            return
        with self._changed:
            self._unremovable.discard(key)
            self._index.remove(key)

    def _work(self) -> None:
        """Run the writer thread."""
        try:
            while (job := self._next()) is not None:
                try:
                    if isinstance(job, bytes):
                        self._write(job)
                    else:
                        self._touch_files(job)
                except OSError as error:
                    self._fail(error)
                except Exception as error:
                    logger.exception("writing a prefix to disk failed")
                    self._fail(error)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        finally:
            self._release()

    def _next(self) -> bytes | tuple[bytes, ...] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue or (self._closing and time.monotonic() >= self._deadline):
                self._drop_queue()
                return None
            self._busy = True
            return self._queue.popleft()

    def _write(self, key: bytes) -> None:
        with self._changed:
            payload = self._pending.get(key)
        if payload is None:  # another write failed and cleared the queue
            return
        size = _on_disk(HEADER_BYTES + len(payload))
        self._evict_for(size)
        self._stamp = max(time.time_ns(), self._stamp + 1)
        write_block(
            self._path(key),
            fingerprint=self._fingerprint,
            key=key,
            payload=payload,
            temporary=self._folder / _TEMPORARY,
            time_ns=self._stamp,
        )
        with self._changed:
            self._unremovable.discard(key)
            self._index.put(key, None, size)
            self._forget_pending(key)
            self._written_bytes += len(payload)
            self._warned = False

    def _evict_for(self, size: int) -> None:
        while True:
            with self._changed:
                oldest = self._index.oldest()
                if oldest is None or self._index.used + size <= self._max_bytes:
                    return
            # Outside the lock: the file system may be slow.
            self._path(oldest).unlink(missing_ok=True)
            with self._changed:
                self._index.remove(oldest)
                self._unremovable.discard(oldest)
                self._evictions += 1

    def _touch_files(self, chain: Sequence[bytes]) -> None:
        for key in reversed(chain):
            with self._changed:
                if key not in self._index:
                    continue
                self._index.touch((key,))
            self._stamp = max(time.time_ns(), self._stamp + 1)
            try:
                os.utime(self._path(key), ns=(self._stamp, self._stamp), follow_symlinks=False)
            except FileNotFoundError:
                with self._changed:
                    self._index.remove(key)

    def _fail(self, error: Exception) -> None:
        """Pause writing; log it the first time."""
        with self._changed:
            self._paused_until = time.monotonic() + _RETRY_S
            self._drop_queue()
            first, self._warned = not self._warned, True
        if first:
            reason = (isinstance(error, OSError) and error.strerror) or error
            logger.warning("prefixes are not cached on disk for now: %s: %s", self._folder, reason)

    def _drop_queue(self) -> None:
        self._dropped += len(self._pending)
        self._queue.clear()
        self._pending.clear()
        self._pending_bytes = 0

    def _forget_pending(self, key: bytes) -> None:
        payload = self._pending.pop(key, None)
        if payload is not None:
            self._pending_bytes -= len(payload)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
