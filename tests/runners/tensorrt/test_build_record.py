"""What is remembered of builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.runners.tensorrt.build_record import FILE, BuildRecord, BuildRecords, record_key
from edgekit.runners.tensorrt.engine_set import Profile
from edgekit.runners.tensorrt.store import Wanted

WANTED = Wanted(
    graph_sha256="0" * 64,
    dialect="portable",
    layout=2,
    library="tensorrt",
    version="10.3.0",
    compute_capability="8.7",
    context_length=4096,
    workspace_bytes=0,
    profiles=(Profile(4, 1), Profile(1, 128)),
)


def test_a_record_is_kept_for_its_engine_until_it_is_empty(tmp_path: Path) -> None:
    records = BuildRecords(tmp_path / "state")
    assert records.get("a") == BuildRecord()
    records.put("a", BuildRecord(failure="Myelin"))
    records.put("b", BuildRecord(unfinished=1))
    again = BuildRecords(tmp_path / "state")
    assert (again.get("a"), again.get("b")) == (BuildRecord(0, "Myelin"), BuildRecord(1))
    again.put("a", BuildRecord())
    assert again.get("a") == BuildRecord()
    assert again.get("b") == BuildRecord(1)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    records = BuildRecords(tmp_path)
    for number in range(40):
        records.put(str(number), BuildRecord(failure=str(number)))
    assert records.get("0") == BuildRecord()
    assert records.get("39").failure == "39"


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[1]", b'{"a": 1}', b'{"a": {"unfinished": [], "failure": 3}}', b"\xff", b"[" * 5000]
)
def test_a_damaged_file_is_as_none(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / FILE).write_bytes(damaged)
    records = BuildRecords(tmp_path)
    assert records.get("a") == BuildRecord()
    records.put("a", BuildRecord(unfinished=2))
    assert records.get("a").unfinished == 2


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BuildRecords(None).put("a", BuildRecord(unfinished=1))
    assert BuildRecords(None).get("a") == BuildRecord()
    (tmp_path / "file").touch()
    BuildRecords(tmp_path / "file").put("a", BuildRecord(unfinished=1))
    assert "cannot remember the build" in caplog.text


def test_whatever_changes_is_another_engine(tmp_path: Path) -> None:
    keys = {
        record_key(wanted, tmp_path)
        for wanted in (
            WANTED,
            replace(WANTED, version="10.16.1"),
            replace(WANTED, context_length=2048),
            replace(WANTED, graph_sha256="1" * 64),
            replace(WANTED, profiles=(Profile(1, 1), Profile(1, 128))),
        )
    }
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.7, GCID: 1")
    keys.add(record_key(WANTED, tmp_path))
    assert len(keys) == 6
