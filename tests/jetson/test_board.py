from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.jetson.board import device_tree, find_board
from tests.jetson.tree import AGX, AGX_MODEL, NANO, NANO_MODEL, write, write_board


@pytest.mark.parametrize(
    ("model", "compatible", "expected"),
    [
        (NANO_MODEL, NANO, ("p3767-0005", "Orin Nano 8 GB (developer kit)", True)),
        (
            NANO_MODEL,
            "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
            ("p3767-0005", "Orin Nano 8 GB (developer kit)", False),
        ),
        (AGX_MODEL, AGX, ("p3701-0005", "AGX Orin 64 GB", False)),
        (
            "A box\0",
            "vendor,box\0nvidia,p3509-0000+p3767-0001\0nvidia,tegra234\0",
            ("p3767-0001", "Orin NX 8 GB", False),
        ),
        (
            "A box\0",
            "nvidia,p3768-0000+p3767-0004-super\0nvidia,tegra234\0",
            ("p3767-0004", "Orin Nano 4 GB", True),
        ),
        ("Thor\0", "nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0", ("p3834-0008", None, False)),
        ("Own\0", "vendor,own\0nvidia,tegra234\0", (None, None, False)),
    ],
)
def test_the_device_tree_names_the_module(
    tmp_path: Path, model: str, compatible: str, expected: tuple[str | None, str | None, bool]
) -> None:
    write_board(tmp_path, model, compatible)
    board = find_board(device_tree(tmp_path))
    assert board is not None
    assert (board.part, board.module, board.super_clocks) == expected
    assert str(board).startswith(model.rstrip("\0"))
    assert board.has_super_variant == (expected[0] or "").startswith("p3767")


def test_the_module_is_named_if_the_model_does_not_say_which() -> None:
    board = find_board(("A box", "nvidia,p3768-0000+p3767-0001", "nvidia,tegra234"))
    assert str(board) == "A box, Orin NX 8 GB"
    assert str(find_board(("nvidia,p3701-0005", "nvidia,tegra234"))) == "NVIDIA Jetson AGX Orin 64 GB"


@pytest.mark.parametrize("compatible", ["", "raspberrypi,5-model-b\0brcm,bcm2712\0", "\xff\0\0\0"])
def test_another_board_is_no_jetson(tmp_path: Path, compatible: str) -> None:
    write(tmp_path, "proc/device-tree/compatible", compatible)
    assert find_board(device_tree(tmp_path)) is None
    assert find_board(device_tree(tmp_path / "none")) is None
