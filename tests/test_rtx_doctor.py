"""What doctor says of a desktop's GPU, on trees of /sys and with a stand-in for nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.machine import Gpu, Machine, probe
from edgekit.rtx_doctor import check_rtx
from tests.jetson.tree import write

PC = Machine("Linux", "x86_64", 15.5)


def with_card(capability: str | None = "8.6") -> Machine:
    return Machine("Linux", "x86_64", 15.5, gpus=(Gpu("NVIDIA GeForce RTX 3060", 12.0, capability),))


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program on PATH that answers the two questions that edgekit asks; the driver's version is in a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\ncase $1 in *driver_version*) cat {folder}/driver;; "
        "*name*) echo 'NVIDIA GeForce RTX 3060, 12288, 8.6';; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "driver"


@pytest.mark.parametrize(("version", "state"), [("580.95.05", "ok"), ("555.42.02", "ok"), ("535.183.01", "warn")])
def test_a_driver_that_is_too_old_for_engines_is_named(tmp_path: Path, smi: Path, version: str, state: str) -> None:
    smi.write_text(f"{version}\n{version}\n")
    assert probe().gpus[0].compute_capability == "8.6"
    (check,) = check_rtx(probe(), tmp_path)
    assert (check.name, check.state) == ("NVIDIA driver", state)
    assert check.detail.startswith(version)
    assert (check.fix is None) == (state == "ok")


def test_a_driver_in_wsl_is_updated_in_windows(tmp_path: Path, smi: Path) -> None:
    smi.write_text("535.183.01\n")
    write(tmp_path, "dev/dxg", "")
    (check,) = check_rtx(with_card(), tmp_path)
    assert "in Windows, and none inside WSL" in (check.fix or "")


@pytest.mark.parametrize(("capability", "warned"), [("7.5", True), ("8.0", False), ("12.0", False), (None, False)])
def test_a_gpu_that_does_not_multiply_int4_is_named(
    tmp_path: Path,
    smi: Path,
    capability: str | None,
    warned: bool,
) -> None:
    smi.write_text("580.95.05\n")
    found = [check for check in check_rtx(with_card(capability), tmp_path) if check.name == "GPU"]
    assert bool(found) == warned
    if found:
        assert "compute capability 7.5; INT4 engines need 8.0" in found[0].detail


def test_a_gpu_without_a_driver_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    assert check_rtx(PC, tmp_path) == []
    write(tmp_path, "sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
    write(tmp_path, "sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")
    # The card's sound.
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert check_rtx(PC, tmp_path) == []
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    (check,) = check_rtx(PC, tmp_path)
    assert check.state == "warn"
    assert "nvidia-smi does not list it" in check.detail


def test_wsl_without_a_driver_gets_the_advice_for_wsl(tmp_path: Path) -> None:
    write(tmp_path, "dev/dxg", "")
    (check,) = check_rtx(PC, tmp_path)
    assert (check.state, check.name) == ("note", "NVIDIA driver")
    write(tmp_path, "usr/lib/wsl/lib/libcuda.so.1", "")
    assert check_rtx(PC, tmp_path) == []
