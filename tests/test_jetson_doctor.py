from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.check import Check
from edgekit.jetson.device import find_jetson
from edgekit.jetson_doctor import check_jetson
from tests.jetson.tree import (
    AGX,
    AGX_MODEL,
    NANO,
    write,
    write_board,
    write_cooling,
    write_nano,
    write_power_mode,
    write_release,
)


def checks(root: Path, memory_gib: float = 7.4) -> dict[str, Check]:
    jetson = find_jetson(root)
    assert jetson is not None
    return {check.name: check for check in check_jetson(jetson, memory_gib, root)}


def test_a_slow_power_mode_comes_with_the_command_for_the_fastest(tmp_path: Path) -> None:
    write_nano(tmp_path)
    assert checks(tmp_path)["power mode"] == Check(
        "power mode", "warn", "25W; the fastest is MAXN_SUPER", "sudo nvpmodel -m 2"
    )
    write_power_mode(tmp_path, 2)
    assert checks(tmp_path)["power mode"] == Check("power mode", "ok", "MAXN_SUPER")
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    assert checks(tmp_path)["power mode"].state == "note"


def test_a_nano_without_the_super_device_tree_is_told_what_it_lacks(tmp_path: Path) -> None:
    write_nano(tmp_path)
    assert checks(tmp_path)["board"].state == "ok"
    write_board(tmp_path, "A Nano\0", NANO.replace("-super", ""))
    board = checks(tmp_path)["board"]
    assert board.state == "warn"
    assert "GPU and memory run at two thirds" in board.detail
    assert "devkit-super" in (board.fix or "")
    write_board(tmp_path, "An NX\0", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    assert "the GPU runs at two thirds" in checks(tmp_path)["board"].detail
    # An older JetPack has no such device tree, and an AGX needs none.
    write_release(tmp_path, "36.4.0")
    assert checks(tmp_path)["board"].state == "ok"
    write_release(tmp_path)
    write_board(tmp_path, AGX_MODEL, AGX)
    assert checks(tmp_path)["board"].state == "ok"


def test_lowered_clocks_are_reported_with_heat_and_power(tmp_path: Path) -> None:
    write_nano(tmp_path)
    clocks = checks(tmp_path)["clocks"]
    assert (clocks.state, clocks.detail) == (
        "note",
        "lowered since boot for under-voltage or overcurrent (oc3 27×); 52 °C, 6.0 W",
    )
    write(tmp_path, "sys/class/hwmon/hwmon2/oc3_event_cnt", 0)
    assert checks(tmp_path)["clocks"] == Check("clocks", "ok", "not lowered; 52 °C, 6.0 W")
    write_cooling(tmp_path, 1, "gpu-throttle-alert", 1)
    assert checks(tmp_path)["clocks"].state == "warn"
    assert "gpu-throttle-alert" in checks(tmp_path)["clocks"].detail


def test_a_desktop_is_reported_with_the_memory_that_it_holds(tmp_path: Path) -> None:
    write_nano(tmp_path)
    assert "desktop" not in checks(tmp_path)
    page = os.sysconf("SC_PAGE_SIZE")
    for process, name, private in ((812, "Xorg", 300 << 20), (990, "gnome-shell", 724 << 20), (1000, "bash", 1 << 30)):
        write(tmp_path, f"proc/{process}/comm", name)
        write(tmp_path, f"proc/{process}/statm", f"900000 {private // page + 50} 50 1 0 100 0")
    write(tmp_path, "proc/1001/comm", "Xwayland")
    write(tmp_path, "proc/1001/statm", "garbage")
    desktop = checks(tmp_path)["desktop"]
    assert desktop.state == "note"
    assert desktop.detail.startswith("running: Xorg, Xwayland, gnome-shell hold 1.0 GiB and more")
    assert "multi-user.target" in (desktop.fix or "")


@pytest.mark.parametrize(
    ("swaps", "noted"),
    [
        ("/dev/zram0 partition 650000 0 5\n/dev/zram1 partition 650000 0 5\n", True),
        ("/dev/zram0 partition 650000 0 5\n/swapfile file 8388604 0 -2\n", False),
        ("", False),
    ],
)
def test_swap_in_memory_alone_is_noted_where_memory_is_scarce(tmp_path: Path, swaps: str, noted: bool) -> None:
    write_nano(tmp_path)
    write(tmp_path, "proc/swaps", f"Filename Type Size Used Priority\n{swaps}")
    assert ("swap" in checks(tmp_path)) == noted
    assert "swap" not in checks(tmp_path, memory_gib=61.4)


def test_a_jetson_of_which_nothing_can_be_read_is_diagnosed(tmp_path: Path) -> None:
    write_board(tmp_path)
    found = checks(tmp_path)
    assert {name: check.state for name, check in found.items()} == {
        "board": "ok",
        "jetpack": "warn",
        "libnvinfer": "warn",
        "power mode": "note",
        "clocks": "note",
    }
    assert found["clocks"].detail == "it is unknown whether they are lowered; no sensors found"
