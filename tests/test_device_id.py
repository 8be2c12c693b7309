from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from edgekit.device_id import device_id, machine_hash

MACHINE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path / "root")


def machine(root: Path, machine_id: str = MACHINE, serial: str | None = None) -> Path:
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_text(machine_id + "\n")
    if serial is not None:
        (root / "proc/device-tree").mkdir(parents=True, exist_ok=True)
        (root / "proc/device-tree/serial-number").write_bytes(serial.encode() + b"\0")
    return root


def name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("kitchen", "kitchen"),
        ("Mac-mini.local", "Mac-mini"),
        ("日本", "device"),
        ("localhost.localdomain", "device"),
        ("", "device"),
        ("a b/c+#$", "a-b-c"),
        ("x" * 200, "x" * 48),
    ],
)
def test_the_id_is_the_host_name_as_a_topic_level_and_a_suffix(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, expected: str
) -> None:
    name(monkeypatch, host)
    found = device_id(state=tmp_path / "state", root=root)
    assert re.fullmatch(rf"{expected}-[0-9a-f]{{8}}", found)
    assert found.isascii()


def test_it_stays_when_the_host_is_renamed_and_every_account_computes_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name(monkeypatch, "kitchen")
    found = device_id(state=tmp_path / "state", root=root)
    assert device_id(state=tmp_path / "another account", root=root, store=False) == found
    assert not (tmp_path / "another account").exists()
    name(monkeypatch, "hall")
    assert device_id(state=tmp_path / "state", root=root) == found


@pytest.mark.parametrize(("machine_id", "serial"), [("f" * 32, "1420"), (MACHINE, "1421")])
def test_clones_of_one_image_with_its_state_folder_have_different_ids(
    tmp_path: Path, machine_id: str, serial: str
) -> None:
    first = device_id(state=tmp_path / "state", root=machine(tmp_path / "one", MACHINE, "1420"))
    second = device_id(state=tmp_path / "state", root=machine(tmp_path / "two", machine_id, serial))
    assert first != second
    assert device_id(state=tmp_path / "state", root=tmp_path / "two") == second


def test_the_machine_id_is_not_published(root: Path, tmp_path: Path) -> None:
    found = device_id(state=tmp_path / "state", root=root)
    published = (tmp_path / "state/device-id").read_text()
    assert MACHINE[:8] not in found + published
    assert machine_hash(root) != machine_hash(machine(tmp_path / "other", MACHINE[:-1] + "0"))


@pytest.mark.parametrize("machine_id", ["", "uninitialized", "0" * 32, "not hexadecimal"])
def test_without_a_machine_id_the_stored_id_is_stable_and_another_one_is_random(
    tmp_path: Path, machine_id: str
) -> None:
    root = machine(tmp_path / "root", machine_id)
    found = device_id(state=tmp_path / "state", root=root)
    assert device_id(state=tmp_path / "state", root=root) == found
    assert device_id(state=tmp_path / "other", root=root) != found


@pytest.mark.parametrize("content", ["", "one line", "a/b\n{hash}\n", "a\nb\nc\n", "\x00\xff"])
def test_a_damaged_file_is_replaced(root: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    path = tmp_path / "state/device-id"
    path.write_text(content.replace("{hash}", str(machine_hash(root))), encoding="latin-1")
    found = device_id(state=tmp_path / "state", root=root)
    assert path.read_text().splitlines()[0] == found


@pytest.mark.parametrize("machine_id", [MACHINE, ""])
def test_where_nothing_can_be_kept_the_log_says_so(
    tmp_path: Path, machine_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "file").touch()
    root = machine(tmp_path / "root", machine_id)
    first, second = (device_id(state=tmp_path / "file", root=root) for _ in range(2))
    assert (first == second) is bool(machine_id)
    assert caplog.records[0].levelname == ("INFO" if machine_id else "WARNING")
