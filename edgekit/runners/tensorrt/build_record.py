"""Remembers builds that failed and builds that were not finished, so that no start repeats them for ever.

The file is `engine-builds.json` in the state folder. What it holds counts for one engine in every respect (`Wanted`),
one version of edgekit and one release of the system: whatever changes, the engine is built again. Without the file, it
is too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit import __version__
from edgekit.atomic_file import replace_file
from edgekit.jetson.jetpack import l4t_release
from edgekit.runners.tensorrt.store import Wanted

__all__ = ["FILE", "MAX_UNFINISHED", "BuildRecord", "BuildRecords", "record_key"]

logger = logging.getLogger(__name__)

FILE = "engine-builds.json"
MAX_UNFINISHED = 3
"""Builds in a row with which the process ended; then none is begun any more."""
_MAX_KEPT = 16


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """What became of the builds of one engine.

    Attributes:
        unfinished: Builds that were begun and neither ended nor were cancelled: the process was killed, or the power
            went.
        failure: Why the build failed or its engine was rejected; empty if neither.
    """

    unfinished: int = 0
    failure: str = ""


class BuildRecords:
    """The records of this machine.

    Args:
        folder: Made if it is missing; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE

    def get(self, key: str) -> BuildRecord:
        """Return the record of an engine; an empty one if there is none."""
        fields = self._read().get(key)
        if not isinstance(fields, dict):
            return BuildRecord()
        unfinished, failure = fields.get("unfinished"), fields.get("failure")
        return BuildRecord(
            unfinished if isinstance(unfinished, int) else 0, failure if isinstance(failure, str) else ""
        )

    def put(self, key: str, record: BuildRecord) -> None:
        """Replace the record of an engine; an empty one is forgotten."""
        if self.path is None:
            return
        kept = {other: value for other, value in self._read().items() if other != key}
        if record != BuildRecord():
            kept[key] = asdict(record)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(dict([*kept.items()][-_MAX_KEPT:])).encode())
        except OSError as error:
            logger.warning("cannot remember the build in %s: %s", self.path, error.strerror)

    def _read(self) -> dict[str, object]:
        if self.path is None:
            return {}
        try:
            data = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}


def record_key(wanted: Wanted, root: Path = Path("/")) -> str:
    """Return the key of an engine's record.

    Args:
        wanted: The engine.
        root: Folder that contains /etc and /var.
    """
    parts = [asdict(wanted), __version__, platform.release(), l4t_release(root)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
