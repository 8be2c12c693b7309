"""Asks pip for the URLs of wheels, since pip has the user's indexes, mirrors, proxies and credentials.

From 25.3 on, pip reports a wheel's URL without downloading it; that is why the extra `export` includes pip.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from edgekit.errors import ExportError, missing_extra

__all__ = ["download_wheel", "wheel_urls"]

_QUIET = ("--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2")
_EXACTLY = ("--no-deps", "--only-binary=:all:")
# Without fast-deps, pip would download every wheel in full to read its dependencies.
_DRY_RUN = ("--dry-run", "--ignore-installed", "--use-feature=fast-deps")


def wheel_urls(requirements: Sequence[str]) -> dict[str, str]:
    """Ask pip for the URLs of wheels.

    Args:
        requirements: Each `name==version`, with a normalised name.

    Returns:
        URLs by requirement; a wheel whose URL needs pip's credentials is left out.

    Raises:
        ExportError: There is no network, or no such wheel.
        EdgekitError: pip is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = ("install", *_DRY_RUN, *_EXACTLY, *_QUIET, "--report", str(report))
        _pip(arguments, requirements, timeout_s=600)
        return _urls(report, requirements)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel: without resuming or progress, but with pip's full configuration.

    Raises:
        ExportError: There is no network, or no such wheel.
        EdgekitError: pip is not installed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _pip(("download", *_EXACTLY, *_QUIET, "--dest", temporary), [requirement], timeout_s=7200)
        wheel = next(Path(temporary).glob("*.whl"), None)
        if wheel is None:
            raise ExportError(f"pip downloaded no wheel for {requirement}")
        return wheel.rename(folder / wheel.name)


def _pip(arguments: Sequence[str], requirements: Sequence[str], *, timeout_s: float) -> None:
    if find_spec("pip") is None:
        raise missing_extra("pip", "export")
    try:
        done = subprocess.run(  # noqa: S603  our own command line
            [sys.executable, "-m", "pip", *arguments, *requirements],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(
            f"pip did not answer: {' '.join(str(error).split())[:120]}", hint="is the network up?"
        ) from error
    if done.returncode == 0:
        return
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = " ".join((errors or done.stderr.splitlines() or ["no reason given"])[-1].split())[:200]
    more = f" and {len(requirements) - 1} more" if len(requirements) > 1 else ""
    raise ExportError(
        f"pip cannot find {requirements[0]}{more}: {reason}",
        hint="check the network, and that your package index has it; once fetched, it works offline",
        code="download_failed",
    )


def _urls(report: Path, requirements: Sequence[str]) -> dict[str, str]:
    try:
        found = {
            f"{_normalised(item['metadata']['name'])}=={item['metadata']['version']}": item["download_info"]["url"]
            for item in json.loads(report.read_text(encoding="utf-8"))["install"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # A URL whose password pip has masked cannot be used.
    return {name: str(found[name]) for name in requirements if name in found and "****" not in str(found[name])}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
