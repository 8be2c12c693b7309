from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit.jetson import power_mode
from edgekit.jetson.power_mode import PowerMode, find_power_mode, parse_nvpmodel
from edgekit.programs import output_of
from tests.jetson.tree import NANO_MODES, write, write_power_mode

AGX_MODES = "".join(
    f"< POWER_MODEL ID={number} NAME={name} >\n"
    for number, name in enumerate(("MAXN", "MODE_15W", "MODE_30W", "MODE_50W"))
)


@pytest.mark.parametrize(
    ("modes", "number", "mode"),
    [
        (NANO_MODES, 0, PowerMode("15W", 0, ("MAXN_SUPER", 2))),
        (NANO_MODES, 2, PowerMode("MAXN_SUPER", 2)),
        (AGX_MODES, 2, PowerMode("MODE_30W", 2, ("MAXN", 0))),
        (AGX_MODES, 0, PowerMode("MAXN", 0)),
        # The old Orin Nano has no MAXN.
        ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n", 1, PowerMode("7W", 1, ("15W", 0))),
        ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n", 0, PowerMode("15W", 0)),
        # One of the user's own is not called slow.
        (f"{NANO_MODES}< POWER_MODEL ID=9 NAME=MINE >\n", 9, PowerMode("MINE", 9)),
    ],
)
def test_the_mode_and_the_boards_fastest_one_are_read_without_root(
    tmp_path: Path, modes: str, number: int, mode: PowerMode
) -> None:
    write_power_mode(tmp_path, number, modes)
    assert find_power_mode(tmp_path) == mode


@pytest.mark.parametrize("status", ["", "garbage", "pmode:", "pmode:0007", "pmode:-1", "pmode:99999999999"])
def test_a_mode_that_is_not_known_is_none(tmp_path: Path, status: str) -> None:
    write_power_mode(tmp_path)
    write(tmp_path, "var/lib/nvpmodel/status", status)
    assert find_power_mode(tmp_path) is None
    assert find_power_mode(tmp_path / "none") is None


def test_nvpmodel_is_asked_where_its_file_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_mode, "read_text", lambda path, *_: NANO_MODES if path.name == "nvpmodel.conf" else None)
    monkeypatch.setattr(power_mode, "output_of", lambda *_, timeout_s: "NV Power Mode: 15W\n0" if timeout_s else "")
    assert find_power_mode() == PowerMode("15W", 0, ("MAXN_SUPER", 2))


def test_the_answer_of_nvpmodel_is_parsed() -> None:
    assert parse_nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n") == ("MAXN_SUPER", 2)
    for output in ("", "NV Power Mode: MAXN", "NV Power Mode:\n", "NVPM ERROR: no permission\n"):
        assert parse_nvpmodel(output) is None


def test_a_program_that_is_missing_or_fails_has_no_output() -> None:
    assert output_of("no-such-program") == ""
    assert output_of(sys.executable, "-c", "print(1); raise SystemExit(3)") == ""
    assert output_of(sys.executable, "-c", "import time; time.sleep(60)", timeout_s=0.1) == ""
    assert output_of(sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff x\\n')") == "\ufffd x"
