from __future__ import annotations

import time
from pathlib import Path

from edgekit.jetson.board import device_tree, find_board
from edgekit.jetson.device import Jetson
from edgekit.jetson.watch import BoardWatch
from tests.jetson.tree import write, write_cooling, write_nano, write_rails, write_zone


def board(root: Path, now: list[float]) -> Jetson:
    found = find_board(device_tree(root))
    assert found is not None
    return Jetson(found, root, clock=lambda: now[0])


def test_the_extremes_and_what_happened_meanwhile_are_kept(tmp_path: Path) -> None:
    now = [0.0]
    watch = BoardWatch(board(write_nano(tmp_path), now))
    write_zone(tmp_path, 1, "gpu-thermal", 88_000)
    write_cooling(tmp_path, 1, "gpu-throttle-alert", 1)
    write_rails(tmp_path, {"VDD_IN": (5000, 4000)})
    write(tmp_path, "sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu/cur_freq", 1_020_000_000)
    now[0] = 10.0
    watch.sample()
    write_zone(tmp_path, 1, "gpu-thermal", 60_000)
    write_cooling(tmp_path, 1, "gpu-throttle-alert", 0)
    write(tmp_path, "sys/class/hwmon/hwmon2/oc3_event_cnt", 30)
    now[0] = 20.0
    watch.stop()
    found = watch.conditions()
    assert (found.start_c, found.max_c, found.max_watts) == (52.5, 88.0, 20.0)
    assert (found.gpu_clock_hz, found.gpu_max_clock_hz) == (1_020_000_000, 1_020_000_000)
    assert found.throttled_by == ("gpu-throttle-alert",)
    assert found.overcurrent_events == {"oc3": 3}  # 27 were before


def test_a_board_without_sensors_has_no_conditions(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3701-0005\0nvidia,tegra234\0")
    watch = BoardWatch(board(tmp_path, [0.0]))
    watch.stop()
    found = watch.conditions()
    assert (found.start_c, found.max_c, found.max_watts, found.gpu_clock_hz) == (None, None, None, None)
    assert found.throttled_by is None
    assert found.overcurrent_events == {}


def test_the_thread_samples_until_it_is_stopped(tmp_path: Path) -> None:
    # Every sample is a fresh one: the clock jumps ahead whenever it is read.
    now = [0.0]

    def clock() -> float:
        now[0] += 100.0
        return now[0]

    found = find_board(device_tree(write_nano(tmp_path)))
    assert found is not None
    watch = BoardWatch(Jetson(found, tmp_path, clock=clock))
    watch.start()
    write_zone(tmp_path, 1, "gpu-thermal", 70_000)
    limit = time.monotonic() + 60
    while watch.conditions().max_c != 70.0 and time.monotonic() < limit:
        time.sleep(0.05)
    write_zone(tmp_path, 1, "gpu-thermal", 40_000)
    watch.stop()
    assert watch.conditions().max_c == 70.0
