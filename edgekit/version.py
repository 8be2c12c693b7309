"""The version, from the git tag and commit that this code is built from or run from.

    tag v0.2.0                  0.2.0
    3 commits after it          0.2.1.dev3+g1a2b3c4d
    no tag yet, 290 commits     0.1.0.dev290+g1a2b3c4d       NEXT_RELEASE, and all commits counted
    uncommitted changes         0.2.1.dev3+g1a2b3c4d.dirty5e6f7a8b
    no git, no repository       0.1.0.dev0+unknown

A wheel and a source distribution carry the version in the file VERSION beside this one (hatch_build.py writes it), so
that no device runs git. hatchling loads this file by its path: it may import the standard library alone.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["FILE", "NEXT_RELEASE", "current_version"]

# The release that development leads to. Tags overtake it: it is edited for a new major or minor version only.
NEXT_RELEASE = "0.1.0"
FILE = "VERSION"

_TAG = re.compile(r"v(\d+\.\d+\.\d+)((?:a|b|rc)\d+)?")
_DESCRIBED = re.compile(r"(?:(?P<tag>.+)-(?P<commits>\d+)-g)?(?P<commit>[0-9a-f]+)(?P<dirty>-dirty)?")


def current_version(package: Path = Path(__file__).parent) -> str:
    """Return the version as PEP 440 writes it; a later commit's is the higher one.

    Args:
        package: The folder `edgekit`.
    """
    try:
        return (package / FILE).read_text(encoding="ascii").strip()
    except OSError:
        return _of_repository(package.parent)


def _of_repository(root: Path) -> str:
    # Only the repository of this very folder: edgekit's sources may lie in a repository of something else.
    described = (root / ".git").exists() and _git(
        root, "describe", "--tags", "--long", "--always", "--dirty", "--abbrev=8", "--match=v[0-9]*.[0-9]*.[0-9]*"
    )
    found = _DESCRIBED.fullmatch(described or "")
    if found is None:
        return f"{NEXT_RELEASE}.dev0+unknown"
    tag = _TAG.fullmatch(found["tag"] or "")
    if tag is None:
        release, commits = NEXT_RELEASE, _count(root)
    elif found["commits"] == "0" and not found["dirty"]:
        return tag[1] + (tag[2] or "")
    else:
        release, commits = _after(tag[1], tag[2] or ""), int(found["commits"])
    local = f"g{found['commit']}"
    if found["dirty"]:
        local += f".dirty{_changes(root)}"
    return f"{release}.dev{commits}+{local}"


def _after(release: str, pre: str) -> str:
    """The release that follows a tagged one: the next patch or pre-release, unless a higher one is planned."""
    if _numbers(NEXT_RELEASE) > _numbers(release):
        return NEXT_RELEASE
    tagged = release + pre
    start = tagged.rstrip("0123456789")
    return f"{start}{int(tagged[len(start) :]) + 1}"


def _numbers(release: str) -> list[int]:
    return [int(number) for number in release.split(".")]


def _count(root: Path) -> int:
    """The commits up to this one; 0 in a shallow clone, which does not have them all."""
    if _git(root, "rev-parse", "--is-shallow-repository") != "false":
        return 0
    return int(_git(root, "rev-list", "--count", "HEAD") or 0)


def _changes(root: Path) -> str:
    """A hash of the uncommitted changes, so that two builds with different ones differ."""
    import hashlib

    changes = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color") or ""
    return hashlib.sha256(changes.encode(errors="surrogateescape")).hexdigest()[:8]


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or it fails."""
    import os
    import subprocess  # imported here: an installed edgekit has VERSION and needs neither

    # A git hook names its own repository in these. Reading must not lock the index.
    foreign = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"}
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607  the one on the user's PATH
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
