"""A file is replaced as a whole, with the permissions asked for, and a failure leaves nothing."""

import os
import stat
from pathlib import Path

import pytest

from edgekit.atomic_file import replace_file


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("existing", [None, b"old"])
def test_the_file_has_the_content_and_the_mode_whatever_was_there(
    existing: bytes | None, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if existing is not None:
        path.write_bytes(existing)
        path.chmod(0o640)
    replace_file(path, b"new\n", mode=mode)
    assert path.read_bytes() == b"new\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_link_names_is_left_alone(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "file"
    other.write_bytes(b"precious")
    path.symlink_to(other)
    replace_file(path, b"new")
    assert (path.read_bytes(), path.is_symlink(), other.read_bytes()) == (b"new", False, b"precious")


def test_a_failure_leaves_the_old_content_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]
