"""Which JetPack a Jetson runs, from the release of its Linux, L4T."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.files import read_text

__all__ = ["JetPack", "find_jetpack", "jetpack_of", "l4t_release"]

# L4T release -> JetPack. Source: NVIDIA, JetPack archive and the release notes of Jetson Linux.
_JETPACKS = {
    (34, 1, 0): "5.0",
    (34, 1, 1): "5.0.1",
    (35, 1, 0): "5.0.2",
    (35, 2, 1): "5.1",
    (35, 3, 1): "5.1.1",
    (35, 4, 1): "5.1.2",
    (35, 5, 0): "5.1.3",
    (35, 6, 0): "5.1.4",
    (35, 6, 1): "5.1.5",
    (36, 2, 0): "6.0 DP",
    (36, 3, 0): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 4, 7): "6.2.1",
    (36, 5, 0): "6.2.2",
    (38, 2, 0): "7.0",
    (38, 4, 0): "7.1",
    (39, 2, 0): "7.2",
    (39, 2, 1): "7.2.1",
}

_DPKG_STATUS_BYTES = 32 << 20
"""More than dpkg's list of packages has on a JetPack with everything installed."""
# `Version: 36.4.7-20250918154033`, in the package's paragraph.
_PACKAGE = r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?"


@dataclass(frozen=True, slots=True)
class JetPack:
    """A JetPack.

    Attributes:
        version: "6.2.1"; for a release that is not known, "newer than 7.2.1" or "older than 5.0".
        l4t: The release of its Linux, (36, 4, 7).
    """

    version: str
    l4t: tuple[int, int, int]

    def __str__(self) -> str:
        """Both, "JetPack 6.2.1 (L4T 36.4.7)"."""
        release = f"(L4T {'.'.join(map(str, self.l4t))})"
        relation, _, version = self.version.rpartition(" than ")
        return f"{relation} than JetPack {version} {release}" if relation else f"JetPack {version} {release}"


def jetpack_of(release: tuple[int, int, int]) -> JetPack:
    """Return the JetPack of an L4T release.

    A release between two known ones of the same JetPack is that JetPack, any other is newer than the one before it: a
    board whose system was updated yesterday must not be taken for one without JetPack.
    """
    if release in _JETPACKS:
        return JetPack(_JETPACKS[release], release)
    before = [version for known, version in _JETPACKS.items() if known < release]
    after = [version for known, version in _JETPACKS.items() if known > release]
    if not before:
        return JetPack(f"older than {after[0]}", release)
    if after and before[-1] == after[0]:
        return JetPack(before[-1], release)
    return JetPack(f"newer than {before[-1]}", release)


def find_jetpack(root: Path = Path("/")) -> JetPack | None:
    """Return the JetPack of this system; None if it is no L4T, or does not say which.

    Args:
        root: Folder that contains /etc and /var.
    """
    release = l4t_release(root)
    return None if release is None else jetpack_of(release)


def l4t_release(root: Path = Path("/")) -> tuple[int, int, int] | None:
    """Return the L4T release: of /etc/nv_tegra_release, or, as in a container, of the package nvidia-l4t-core.

    Args:
        root: Folder that contains /etc and /var.
    """
    text = read_text(root / "etc/nv_tegra_release") or ""
    # `# R36 (release), REVISION: 4.3, GCID: …` is 36.4.3.
    match = re.search(r"R(\d{1,4}) \(release\), REVISION: (\d{1,4})(?:\.(\d{1,4}))?", text, re.ASCII)
    if match is None:
        packages = read_text(root / "var/lib/dpkg/status", _DPKG_STATUS_BYTES) or ""
        match = re.search(_PACKAGE, packages, re.ASCII | re.MULTILINE)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))
