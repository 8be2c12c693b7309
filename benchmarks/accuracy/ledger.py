"""What was measured so far, one JSON object a line, so that a run that was stopped continues where it ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError

__all__ = ["Ledger"]


class Ledger:
    """Rows by key, in a file.

    Args:
        folder: Where the file is; created if it is missing.
        name: Start of its name.
        settings: What the rows depend on; other settings are another file. They are the file's first line.
        fresh: Forget earlier rows.

    Raises:
        EdgekitError: Another run writes it.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        text = json.dumps(dict(settings), sort_keys=True, ensure_ascii=False)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise EdgekitError(f"another run writes {self.path}", hint="wait for it, or choose --output") from None
        self.rows: dict[str, dict[str, Any]] = {} if fresh else self._read()
        # Written anew, without a line that a kill cut.
        self._file.truncate(0)
        lines = [text, *(json.dumps(row, ensure_ascii=False) for row in self.rows.values())]
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row, which replaces an earlier one of the same key."""
        self.rows[key] = {"key": key, **row}
        self._file.write(json.dumps(self.rows[key], ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        rows: dict[str, dict[str, Any]] = {}
        for line in self._file.read().splitlines()[1:]:
            row = _row(line)
            if row is None:
                break
            rows[row["key"]] = row
        return rows


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "key" in row else None
