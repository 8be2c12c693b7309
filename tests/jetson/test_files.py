from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.jetson import files
from edgekit.jetson.files import MAX_BYTES, numbered, read_bytes, read_number, read_text


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"42\n", 42),
        (b"-256000\n", -256_000),
        (b" 7\0", 7),
        (b"", None),
        (b"N/A\n", None),
        (b"1 2\n", None),
        (b"1_000", None),
        ("٣".encode(), None),
        (b"\xff\xfe", None),
        (b"9" * 5000, None),
    ],
)
def test_a_number_is_read_only_where_there_is_one(tmp_path: Path, content: bytes, number: int | None) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_number(tmp_path / "file") == number


def test_of_a_huge_file_only_the_beginning_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert read_bytes(tmp_path / "huge") == bytes(MAX_BYTES)
    assert read_text(Path("/dev/zero")) == ""


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe") == ""
    assert read_number(tmp_path / "pipe") is None


def test_what_cannot_be_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "file").write_text("1")
    for name in ("loop", "nowhere", "missing", ".", "file/below", "nul\0"):
        assert read_text(tmp_path / name) is None, name
        assert read_number(tmp_path / name) is None, name

    class Refusing:
        """The files of another user: as root, which tests may run as, every file can be opened."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, *_: object) -> int:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "os", Refusing())
    assert read_text(tmp_path / "file") is None


def test_an_error_of_the_sensor_is_absence_and_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Failing:
        """A sensor on a bus that does not answer."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def read(self, *_: object) -> bytes:
            raise OSError(5, "Input/output error")

        def close(self, descriptor: int) -> None:
            closed.append(descriptor)
            os.close(descriptor)

    (tmp_path / "file").write_text("1")
    monkeypatch.setattr(files, "os", Failing())
    assert read_number(tmp_path / "file") is None
    assert len(closed) == 1


def test_numbered_entries_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("zone10", "zone2", "zone0", "zone", "zonex", "azone1", "zone1a", "other3"):
        (tmp_path / name).mkdir()
    assert [entry.name for entry in numbered(tmp_path, "zone")] == ["zone0", "zone2", "zone10"]
    assert numbered(tmp_path / "missing", "zone") == []


def test_a_folder_of_many_entries_is_read_in_part(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"zone{number}").touch()
    assert len(numbered(tmp_path, "zone")) == 256
