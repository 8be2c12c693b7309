from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.machine import GIB, Gpu, available_bytes, gpu_free_bytes, parse_nvidia_smi, probe
from edgekit.recognition import recognise
from tests.jetson.tree import write, write_board


def test_the_device_tree_and_the_memory_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin NX Developer Kit\0")
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16055860 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n")
    machine = probe(tmp_path)
    assert machine.device_tree[0] == "NVIDIA Jetson Orin NX Developer Kit"
    assert machine.device_tree[-1] == "nvidia,tegra234"
    assert machine.memory_gib == pytest.approx(16055860 * 1024 / GIB)
    assert available_bytes(tmp_path) == 8 * GIB
    assert recognise(machine).name == "orin-nx-16"


def test_what_a_jetson_keeps_for_contiguous_buffers_is_not_available(tmp_path: Path) -> None:
    meminfo = "MemTotal: 7802880 kB\nMemAvailable: 4194304 kB\nCmaTotal: 262144 kB\nCmaFree: 131072 kB\n"
    write(tmp_path, "proc/meminfo", meminfo)
    # The memory of a program, which is all that counts on a machine without Tegra, can be there.
    assert available_bytes(tmp_path) == 4 * GIB
    write_board(tmp_path)
    assert available_bytes(tmp_path) == 4 * GIB - (131072 << 10)
    write(tmp_path, "proc/meminfo", "MemAvailable: 1024 kB\nCmaFree: 131072 kB\n")
    assert available_bytes(tmp_path) == 0


def test_a_machine_without_proc_files_is_still_probed(tmp_path: Path) -> None:
    machine = probe(tmp_path)
    assert machine.memory_gib > 0
    assert machine.device_tree == ()
    assert available_bytes(tmp_path) is None


def test_the_free_memory_of_the_first_card_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_free_bytes() is None
    program = tmp_path / "nvidia-smi"
    for output, free in (("11019\\n512", 11019 << 20), ("[N/A]", None), ("", None)):
        program.write_text(f"#!/bin/sh\nprintf '{output}'\n")
        program.chmod(0o755)
        assert gpu_free_bytes() == free


def test_nvidia_smi_is_parsed_with_and_without_figures() -> None:
    output = "NVIDIA GeForce RTX 3060, 12288, 8.6\nOrin (nvgpu), [N/A], [N/A]\nOld card, 2048, [N/A]\nnoise\n"
    assert parse_nvidia_smi(output) == (
        Gpu("NVIDIA GeForce RTX 3060", 12.0, "8.6"),
        Gpu("Old card", 2.0, None),
    )
