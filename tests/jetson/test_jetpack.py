from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.jetson.jetpack import find_jetpack, jetpack_of, l4t_release
from tests.jetson.tree import write, write_release


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("35.4.1", "5.1.2"),
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("36.5", "6.2.2"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("39.2.1", "7.2.1"),
        ("36.4.5", "6.2.1"),  # between two that are the same
        ("36.4.9", "newer than 6.2.1"),
        ("36.6.0", "newer than 6.2.2"),
        ("39.2.2", "newer than 7.2.1"),
        ("41.0.0", "newer than 7.2.1"),
        ("32.7.1", "older than 5.0"),
    ],
)
def test_an_l4t_release_is_a_jetpack_and_an_unknown_one_is_newer(tmp_path: Path, release: str, version: str) -> None:
    write_release(tmp_path, release)
    jetpack = find_jetpack(tmp_path)
    assert jetpack is not None
    assert jetpack.version == version


def test_both_numbers_are_shown() -> None:
    assert str(jetpack_of((36, 4, 7))) == "JetPack 6.2.1 (L4T 36.4.7)"
    assert str(jetpack_of((40, 1, 0))) == "newer than JetPack 7.2.1 (L4T 40.1.0)"


@pytest.mark.parametrize(
    ("version", "release"),
    [("36.4.7-20250918154033", (36, 4, 7)), ("39.2-2026", (39, 2, 0)), ("broken", None)],
)
def test_in_a_container_the_package_says_which(
    tmp_path: Path, version: str, release: tuple[int, int, int] | None
) -> None:
    paragraphs = [
        "Package: nvidia-l4t-core-dev\nVersion: 1.2.3\n",
        f"Package: nvidia-l4t-core\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n",
        "Package: zlib1g\nVersion: 1.2.11\n",
    ]
    write(tmp_path, "var/lib/dpkg/status", "\n".join(paragraphs))
    assert l4t_release(tmp_path) == release


@pytest.mark.parametrize("text", ["", "garbage", "# R36 (release)", "# Rx (release), REVISION: 4.3", "\0" * 100])
def test_a_system_that_does_not_say_has_no_release(tmp_path: Path, text: str) -> None:
    write(tmp_path, "etc/nv_tegra_release", text)
    assert l4t_release(tmp_path) is None
    assert find_jetpack(tmp_path / "none") is None
