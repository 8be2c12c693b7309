from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from edgekit.jetson.device import find_jetson
from edgekit.jetson.gpu import GpuState, find_gpu
from edgekit.jetson.rails import find_rails
from edgekit.jetson.thermal import find_thermal
from tests.jetson.tree import (
    AGX_RAILS,
    NANO_RAILS,
    write,
    write_cooling,
    write_gpu,
    write_nano,
    write_rails,
    write_zone,
)


@pytest.mark.parametrize("node", ["gpu", "ga10b"])
def test_the_gpu_is_found_by_its_name_in_the_device_tree(tmp_path: Path, node: str) -> None:
    write_gpu(tmp_path, node=node)
    assert find_gpu(tmp_path).read() == GpuState(0.995, 918_000_000, 1_020_000_000)


def test_the_gpus_load_is_found_without_devfreq_too(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/platform/17000000.ga10b/load", 10)
    assert find_gpu(tmp_path).read() == GpuState(0.01)


@pytest.mark.parametrize("load", ["", "garbage", -1, 1001, "9" * 30])
def test_an_impossible_load_is_absent(tmp_path: Path, load: object) -> None:
    write_gpu(tmp_path, load=load)
    assert find_gpu(tmp_path).read() == GpuState(None, 918_000_000, 1_020_000_000)


def test_a_sensor_that_is_off_has_no_temperature(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        [("cpu-thermal", 51_250), ("cv0-thermal", -256_000), ("gpu-thermal", ""), ("soc0-thermal", "garbage")]
    ):
        write_zone(tmp_path, number, name, value)
    write(tmp_path, "sys/class/thermal/thermal_zone9/type", "tj-thermal")
    assert find_thermal(tmp_path).temperatures() == {"cpu-thermal": 51.25}


def test_of_zones_with_one_name_the_hottest_counts_and_a_name_that_cannot_be_shown_is_replaced(tmp_path: Path) -> None:
    write_zone(tmp_path, 0, "soc-thermal", 40_000)
    write_zone(tmp_path, 1, "soc-thermal", 45_000)
    write_zone(tmp_path, 2, "x" * 3000, 50_000)
    write_zone(tmp_path, 3, "\x1b[31m", 55_000)
    assert find_thermal(tmp_path).temperatures() == {"soc-thermal": 45.0, "thermal_zone2": 50.0, "thermal_zone3": 55.0}


def test_only_alerts_count_as_throttling_and_not_the_fan(tmp_path: Path) -> None:
    write_cooling(tmp_path, 0, "pwm-fan", 4)
    write_cooling(tmp_path, 1, "devfreq-17000000.gpu", 3)
    write_cooling(tmp_path, 2, "cpu-throttle-alert", 0)
    assert find_thermal(tmp_path).throttling() == ()
    write_cooling(tmp_path, 3, "gpu-throttle-alert", 1)
    assert find_thermal(tmp_path).throttling() == ("gpu-throttle-alert",)


def test_the_total_is_the_input_of_a_nano_and_the_sum_of_three_rails_of_an_agx(tmp_path: Path) -> None:
    write_rails(tmp_path / "nano", NANO_RAILS)
    nano = find_rails(tmp_path / "nano")
    assert nano.watts() == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.9968, "VDD_SOC": 1.4976})
    assert nano.total() == pytest.approx(6.0)
    write_rails(tmp_path / "agx", AGX_RAILS, 3)
    write_rails(tmp_path / "agx", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 100)}, 4)
    agx = find_rails(tmp_path / "agx")
    assert set(agx.watts()) == {*AGX_RAILS, "VDDQ_VDD2_1V8AO"}
    assert agx.total() == pytest.approx(9.9 + 1.98 + 5.0)


@pytest.mark.parametrize("current", ["", "garbage", -20, 10**9])
def test_without_one_of_its_rails_a_total_is_unknown(tmp_path: Path, current: object) -> None:
    write(write_rails(tmp_path, AGX_RAILS), "curr2_input", current)
    rails = find_rails(tmp_path)
    assert set(rails.watts()) == {"VDD_GPU_SOC", "VIN_SYS_5V0"}
    assert rails.total() is None


def test_a_rail_above_its_critical_current_is_named(tmp_path: Path) -> None:
    folder = write_rails(tmp_path, NANO_RAILS)
    assert find_rails(tmp_path).overcurrent() == ()
    write(folder, "curr1_crit_alarm", 1)
    assert find_rails(tmp_path).overcurrent() == ("VDD_IN",)


def test_other_monitors_have_no_rails(tmp_path: Path) -> None:
    folder = write_rails(tmp_path, NANO_RAILS)
    write(folder, "name", "nvme")
    assert find_rails(tmp_path).rails == ()
    assert find_rails(tmp_path).total() is None
    assert find_rails(tmp_path / "none").rails == ()


def test_a_whole_board_is_read(tmp_path: Path) -> None:
    jetson = find_jetson(write_nano(tmp_path))
    assert jetson is not None
    assert (jetson.board.part, str(jetson.jetpack)) == ("p3767-0005", "JetPack 6.2.1 (L4T 36.4.7)")
    reading = jetson.read()
    assert reading.power_mode is not None
    assert (reading.power_mode.name, reading.power_mode.fastest) == ("25W", ("MAXN_SUPER", 2))
    assert reading.temperatures == {"cpu-thermal": 51.25, "gpu-thermal": 52.5}
    assert reading.total_watts == pytest.approx(6.0)
    assert reading.throttled_by == ()
    assert reading.overcurrent_events == {"oc1": 0, "oc2": 0, "oc3": 27}


def test_a_reading_is_used_again_for_a_second(tmp_path: Path) -> None:
    jetson = find_jetson(write_nano(tmp_path))
    assert jetson is not None
    now = [0.0]
    jetson._clock = lambda: now[0]
    first = jetson.read()
    write_cooling(tmp_path, 1, "gpu-throttle-alert", 1)
    now[0] = 0.9
    assert jetson.read() is first
    now[0] = 1.1
    assert jetson.read().throttled_by == ("gpu-throttle-alert",)


def test_a_jetson_of_which_nothing_else_can_be_read_is_still_one(tmp_path: Path) -> None:
    write_nano(tmp_path)
    for name in ("etc", "var", "sys"):
        (tmp_path / name).rename(tmp_path / f"no-{name}")
    jetson = find_jetson(tmp_path)
    assert jetson is not None
    reading = jetson.read()
    assert (jetson.jetpack, reading.power_mode, reading.throttled_by) == (None, None, None)
    assert (reading.temperatures, reading.watts, reading.overcurrent_events) == ({}, {}, {})


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_the_files_raises(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    write_nano(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and "device-tree" not in path.parts)
    before = find_jetson(tmp_path)
    for file in rng.sample(files, len(files) // 2):
        file.unlink()
        damage = rng.randrange(6)
        if damage == 0:
            file.write_bytes(rng.randbytes(rng.randrange(300)))
        elif damage == 1:
            file.symlink_to(file.name)
        elif damage == 2:
            file.mkdir()
        elif damage == 3:
            os.mkfifo(file)
        elif damage == 4:
            with file.open("wb") as huge:
                huge.truncate(1 << 34)
    # Both of a board found before the damage, and of one found after it.
    for jetson in (before, find_jetson(tmp_path)):
        assert jetson is not None
        reading = jetson.read()
        assert all(-60 <= value <= 150 for value in reading.temperatures.values())
        assert all(0 <= value <= 500 for value in reading.watts.values())
