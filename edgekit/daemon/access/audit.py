"""The audit log: one line of JSON per request, with its sender, its cost and its outcome, never its content."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from datetime import datetime, timezone
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.access.keys import redact
from edgekit.daemon.rare_log import RareLog
from edgekit.errors import ConfigError
from edgekit.generation.types import Failure, Finished

__all__ = ["AuditLog", "AuditRecord"]

logger = logging.getLogger(__name__)

_KEPT_FILES = 4
_MAX_CHARS = 200


class AuditRecord:
    """The line of one request; written when the reply has ended and all that it generates.

    Args:
        log: Where it is written.
        transport: `http` or `mqtt`.
        request_id: The request's id.
        what: Method and path, or the kind of the topic.
        address: The sender's address; empty if unknown, as over MQTT.
    """

    def __init__(self, log: AuditLog, transport: str, *, request_id: str, what: str, address: str = "") -> None:
        self.identity: Identity = ANONYMOUS
        self.model: str | None = None
        self._log = log
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._parts = 1
        self._outcome = ""
        self._status: int | None = None
        self._tokens = [0, 0, 0]
        self._fields = {"transport": transport, "request": request_id, "what": what, "address": address}

    def begin(self) -> None:
        """Wait for a generation, too."""
        with self._lock:
            self._parts += 1

    def generated(self, event: Finished | Failure) -> None:
        """Record the end of a generation."""
        with self._lock:
            if isinstance(event, Finished):
                self._outcome = event.reason
                usage = (event.usage.prompt_tokens, event.usage.cached_tokens, event.usage.completion_tokens)
                self._tokens = [sum(pair) for pair in zip(self._tokens, usage, strict=True)]
            else:
                self._outcome = event.error.code
        self._end_part()

    def refused(self, code: str) -> None:
        """Record why the request, or a part of it, is refused."""
        with self._lock:
            self._outcome = code

    def replied(self, status: int | None = None) -> None:
        """Record the end of the reply.

        Args:
            status: Its HTTP status; None over MQTT.
        """
        self._status = status
        self._end_part()

    def _end_part(self) -> None:
        with self._lock:
            self._parts -= 1
            over = self._parts == 0
        if over:
            self._log.write(self._line())

    def _line(self) -> dict[str, Any]:
        key = self.identity.key
        prompt, cached, completion = self._tokens
        texts = {name: redact(text)[:_MAX_CHARS] for name, text in self._fields.items()}
        return {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **texts,
            "name": self.identity.name,
            "key": None if key is None else key.id,
            "model": self.model,
            "status": self._status,
            "outcome": self._outcome or None,
            "seconds": round(time.monotonic() - self._begun, 3),
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "completion_tokens": completion,
        }


class AuditLog:
    """Writes the lines into the daemon's log, or into a file that is rotated.

    Args:
        where: `off`, `log` or `file`.
        path: The file.
        max_bytes: Its size above which it is rotated; four older ones are kept.
    """

    def __init__(
        self, where: Literal["off", "log", "file"], path: Path | None = None, max_bytes: int = 16 << 20
    ) -> None:
        self._where = where
        self._path = path
        self._max_bytes = max_bytes
        self._file: _File | None = None

    def start(self) -> None:
        """Open the file.

        Raises:
            ConfigError: It cannot be opened.
        """
        if self._where != "file":
            return
        if self._path is None:
            raise ConfigError("there is no folder for the audit log", hint="set `access.audit_file`")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = _File(self._path, self._max_bytes)
        except OSError as error:
            raise ConfigError(
                f"cannot write the audit log {self._path}: {error.strerror}", hint="check `access.audit_file`"
            ) from error

    def stop(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def reopen(self) -> None:
        """Open the file anew, after a program has moved it."""
        if self._file is not None:
            self._file.reopen()

    def write(self, line: dict[str, Any]) -> None:
        """Write a line; any thread may call this, and it never raises."""
        if self._where == "off":
            return
        text = json.dumps(line, separators=(",", ":"))
        if self._where == "log":
            logger.info("audit: %s", text)
        elif self._file is not None:
            self._file.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


class _File(RotatingFileHandler):
    """The rotated file, readable by the daemon's account only."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._rare = RareLog(logger)
        super().__init__(path, maxBytes=max_bytes, backupCount=_KEPT_FILES, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def reopen(self) -> None:
        """Close the file, and open the one that now has its name."""
        with self.lock or threading.Lock():
            self.close()
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  logging's signature
        """Report a line that cannot be written; logging's own would print a traceback."""
        self._rare.warning("the audit log cannot be written: is the disk full?")
