"""Blocks of KV cache on disk: they outlive the process and are never needed.

    FOLDER/prefix/            0700
        lock                  held while a process uses the folder; a second one goes without
        MODEL-KEY.kv          0600, one block each; the time of modification is when it was last used
        writing.tmp           the one being written; whatever a killed process left is removed at the next start

The files are the index: at open their names, sizes and times are read, and their contents only when wanted (every one
is verified then). What belongs to another model is removed. Writing is done by a thread of its own from a bounded
queue; who saves never waits. If the disk is full, read-only or not ours, the store says so once and goes quiet.

It knows no tokens and no runner.
"""

from __future__ import annotations

import fcntl
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

__all__ = ["QUEUE_BYTES", "DiskStats", "DiskStore"]

logger = logging.getLogger(__name__)

_PAGE = 4096
# After a failed write nothing is written for so long: disks are emptied, and remounted.
_QUIET_S = 300.0
_MIB = 1 << 20
QUEUE_BYTES = 128 * _MIB
"""KV cache that may wait to be written, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Counters since the start, and what is there now.

    Attributes:
        blocks: Blocks there now.
        used_bytes: Bytes they take on disk, in whole pages.
        read_bytes: KV cache read and found good.
        written_bytes: KV cache written.
        evictions: Blocks removed to make room.
        damaged: Blocks removed because they were not what they should be, or could not be read.
        dropped: Blocks not written because the queue was full, or the disk failed.
    """

    blocks: int
    used_bytes: int
    read_bytes: int
    written_bytes: int
    evictions: int
    damaged: int
    dropped: int


class DiskStore:
    """A folder of blocks; any thread may call.

    Args:
        folder: Made if it is missing; the store keeps to the subfolder `prefix`, all of which is its own.
        max_bytes: Never exceeded on disk, the block being written included.
        fingerprint: Of the model; blocks of any other are removed.
        queue_bytes: Most KV cache that waits to be written; beyond it blocks are dropped.
    """

    def __init__(self, folder: Path, *, max_bytes: int, fingerprint: str, queue_bytes: int = QUEUE_BYTES) -> None:
        self._folder = folder / "prefix"
        self._max_bytes = max_bytes
        self._queue_bytes = queue_bytes
        self._fingerprint = fingerprint_digest(fingerprint)
        self._tag = self._fingerprint[:8].hex()
        self._changed = threading.Condition()
        self._index: Lru[None] = Lru()
        # Files that should be gone and could not be removed: they count, and are not served.
        self._undead: set[bytes] = set()
        # A key: write its block. A chain: it was used.
        self._queue: deque[bytes | tuple[bytes, ...]] = deque()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._busy = False
        self._closing = False
        self._deadline = 0.0
        self._quiet_until = 0.0
        self._reading = 0
        self._late = False
        self._warned = False
        self._stamp = 0
        self._read_bytes = self._written_bytes = self._evictions = self._damaged = self._dropped = 0
        self._lock: int | None = None
        self._writer: threading.Thread | None = None
        try:
            self._open()
        except OSError as error:
            self._closing = True
            self._release()
            taken = isinstance(error, BlockingIOError)
            logger.warning(
                "prefixes are not kept on disk: %s: %s",
                self._folder,
                "another process uses it" if taken else error.strerror or error,
            )
            return
        self._writer = threading.Thread(target=self._work, name="prefix-writer", daemon=True)
        self._writer.start()

    @property
    def active(self) -> bool:
        """Whether the folder could be opened, and `close` was not called."""
        return not self._closing

    def __contains__(self, key: bytes) -> bool:
        with self._changed:
            return not (self._closing or self._late) and (key in self._pending or self._has(key))

    def capacity(self, payload_bytes: int) -> int:
        """Return how many blocks of this size there is room for in all."""
        return self._max_bytes // _on_disk(HEADER_BYTES + payload_bytes)

    def get(self, key: bytes) -> bytes | None:
        """Return a block's KV cache, verified; None if it is not held, and from now on if it is damaged."""
        with self._changed:
            waiting = self._pending.get(key)
            if waiting is not None:
                return waiting
            if self._closing or self._late or not self._has(key):
                return None
            self._reading += 1
        try:
            payload = self._read(key)
        finally:
            with self._changed:
                self._reading -= 1
                if not self._reading:
                    self._late = False
        return payload

    def late(self) -> None:
        """Take note that a read does not end: nothing more is read until it does."""
        with self._changed:
            self._late = self._reading > 0

    def put(self, key: bytes, payload: bytes) -> bool:
        """Queue a block to be written, and return at once.

        Returns:
            Whether it is or will be there; False if the queue is full, the disk failed lately, or it is too large.
        """
        size = _on_disk(HEADER_BYTES + len(payload))
        with self._changed:
            if self._closing or size > self._max_bytes or time.monotonic() < self._quiet_until:
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
        """Note that these blocks, in the order of their chain, were used now; takes effect after what is queued."""
        with self._changed:
            if not self._closing and len(self._queue) < 10_000 and time.monotonic() >= self._quiet_until:
                self._queue.append(tuple(chain))
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued is written or given up; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def stats(self) -> DiskStats:
        """Return the counters."""
        with self._changed:
            return DiskStats(
                blocks=len(self._index) - len(self._undead),
                used_bytes=self._index.used,
                read_bytes=self._read_bytes,
                written_bytes=self._written_bytes,
                evictions=self._evictions,
                damaged=self._damaged,
                dropped=self._dropped,
            )

    def close(self, flush_s: float = 5.0) -> None:
        """Write what is queued, for at most so long, and release the folder. Calling it again does nothing.

        A write that hangs in the system is left behind with its thread.
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
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Prompts are private, whatever made the folder.
        self._folder.chmod(0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(self._folder / "lock", flags, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = re.compile(rf"{self._tag}-([0-9a-f]{{64}})\.kv")
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name == "lock" or entry.is_dir(follow_symlinks=False):
                    continue
                match = name.fullmatch(entry.name)
                status = entry.stat(follow_symlinks=False)
                if match and entry.is_file(follow_symlinks=False) and status.st_size > HEADER_BYTES:
                    found.append((status.st_mtime_ns, bytes.fromhex(match[1]), status.st_size))
                else:
                    Path(entry.path).unlink()
        for stamp, key, size in sorted(found):
            self._index.put(key, None, _on_disk(size))
            # Later times follow the latest one there, even if the clock does not: small devices start in 1970.
            self._stamp = stamp
        self._make_room(0)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{self._tag}-{key.hex()}.kv"

    def _has(self, key: bytes) -> bool:
        return key in self._index and key not in self._undead

    def _read(self, key: bytes) -> bytes | None:
        try:
            payload = read_block(self._path(key), fingerprint=self._fingerprint, key=key)
        except FileNotFoundError:  # evicted meanwhile, or removed by somebody
            with self._changed:
                self._index.remove(key)
            return None
        except (DamagedBlockError, OSError) as error:
            logger.warning("a cached prefix on disk is unusable and is removed: %s", error)
            self._discard(key)
            return None
        with self._changed:
            self._read_bytes += len(payload)
        return payload

    def _discard(self, key: bytes) -> None:
        with self._changed:
            self._damaged += 1
            self._undead.add(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            self._fail(error)
            return
        with self._changed:
            self._undead.discard(key)
            self._index.remove(key)

    def _work(self) -> None:
        """The writer's thread."""
        try:
            while (job := self._next()) is not None:
                try:
                    if isinstance(job, bytes):
                        self._write(job)
                    else:
                        self._mark(job)
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
        if payload is None:  # a failure elsewhere emptied the queue
            return
        size = _on_disk(HEADER_BYTES + len(payload))
        self._make_room(size)
        self._stamp = max(time.time_ns(), self._stamp + 1)
        write_block(
            self._path(key),
            fingerprint=self._fingerprint,
            key=key,
            payload=payload,
            temporary=self._folder / "writing.tmp",
            time_ns=self._stamp,
        )
        with self._changed:
            self._undead.discard(key)
            self._index.put(key, None, size)
            self._forget_pending(key)
            self._written_bytes += len(payload)
            self._warned = False

    def _make_room(self, size: int) -> None:
        while True:
            with self._changed:
                oldest = self._index.oldest()
                if oldest is None or self._index.used + size <= self._max_bytes:
                    return
            # Outside the lock: a file system may take its time.
            self._path(oldest).unlink(missing_ok=True)
            with self._changed:
                self._index.remove(oldest)
                self._undead.discard(oldest)
                self._evictions += 1

    def _mark(self, chain: Sequence[bytes]) -> None:
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
        """Go quiet for a while; say so the first time."""
        with self._changed:
            self._quiet_until = time.monotonic() + _QUIET_S
            self._drop_queue()
            first, self._warned = not self._warned, True
        if first:
            reason = (isinstance(error, OSError) and error.strerror) or error
            logger.warning("prefixes are not kept on disk for now: %s: %s", self._folder, reason)

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
