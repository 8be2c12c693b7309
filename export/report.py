"""The HTML report (written next)."""

from __future__ import annotations
from pathlib import Path
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.quality import Quality


def write_report(path: Path, manifest: Manifest, quality: Quality) -> None: ...
