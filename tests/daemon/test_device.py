from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig
from edgekit.daemon import device
from edgekit.daemon.app import Daemon
from edgekit.daemon.device import device_metrics, device_status
from edgekit.daemon.metrics import Metrics
from edgekit.jetson import energy
from edgekit.jetson.device import Jetson, find_jetson
from tests.generation.bundles import tiny_bundle
from tests.jetson.tree import AGX_RAILS, write_board, write_cooling, write_nano, write_rails, write_zone

ASK = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def _jetson(root: Path) -> Jetson:
    found = find_jetson(root)
    assert found is not None
    return found


def _scrape(jetson: Jetson) -> str:
    metrics = Metrics()
    metrics.watch_device(lambda: device_metrics(jetson))
    return metrics.render()[0].decode()


def test_a_boards_sensors_are_metrics_with_their_units_in_the_names(tmp_path: Path) -> None:
    write_nano(tmp_path)
    write_board(tmp_path, "A Nano\0", "nvidia,p3767-0003\0nvidia,tegra234\0")
    text = _scrape(_jetson(tmp_path))
    for line in (
        'edgekit_device_info{board="A Nano, Orin Nano 8 GB",jetpack="6.2.1",l4t="36.4.7",module="p3767-0003"} 1.0',
        'edgekit_power_mode_info{id="1",mode="25W"} 1.0',
        "edgekit_gpu_load_ratio 0.995",
        "edgekit_gpu_clock_hertz 9.18e+08",
        "edgekit_gpu_max_clock_hertz 1.02e+09",
        'edgekit_temperature_celsius{zone="gpu-thermal"} 52.5',
        'edgekit_power_watts{rail="VDD_IN"} 6.0',
        "edgekit_board_power_watts 6.0",
        "edgekit_throttled 0.0",
        'edgekit_overcurrent_events_total{event="oc3"} 27.0',
    ):
        assert f"{line}\n" in text


def test_what_a_board_has_no_sensor_for_is_absent(tmp_path: Path) -> None:
    write_board(tmp_path)
    names = {line.split("{")[0].split(" ")[0] for line in _scrape(_jetson(tmp_path)).splitlines() if line[0] != "#"}
    sensors = ("gpu", "temperature", "power", "board", "throttled", "overcurrent")
    assert "edgekit_device_info" in names
    assert not [name for name in names if name.startswith(tuple(f"edgekit_{sensor}" for sensor in sensors))]


def test_sensors_are_read_once_a_second_however_often_they_are_scraped(tmp_path: Path) -> None:
    jetson = _jetson(write_nano(tmp_path))
    jetson._clock = lambda: 7.0
    before = _scrape(jetson)
    write_zone(tmp_path, 1, "gpu-thermal", 99_000)
    assert _scrape(jetson).count("52.5") == before.count("52.5") == 1


def test_the_status_names_the_board_and_leaves_nothing_out(tmp_path: Path) -> None:
    write_nano(tmp_path)
    write_cooling(tmp_path, 1, "gpu-throttle-alert", 1)
    status = device_status(_jetson(tmp_path))
    assert status.pop("board") == str(_jetson(tmp_path).board)
    assert status == {
        "jetpack": "6.2.1",
        "power_mode": "25W",
        "temperature_c": 52.5,
        "power_w": 6.0,
        "gpu_load": 0.995,
        "throttled": True,
    }
    write_board(tmp_path / "bare")
    assert set(device_status(_jetson(tmp_path / "bare")).values()) == {None, str(_jetson(tmp_path / "bare").board)}


def test_the_power_of_an_agx_is_the_sum_of_its_inputs(tmp_path: Path) -> None:
    write_board(tmp_path)
    write_rails(tmp_path, AGX_RAILS)
    assert device_status(_jetson(tmp_path))["power_w"] == pytest.approx(16.88)


def test_a_daemon_on_a_jetson_shows_its_metrics_and_the_energy_of_answers_and_elsewhere_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = DaemonConfig(
        bundle=tiny_bundle(tmp_path, "onnx"), http=HttpConfig(port=0), generation=GenerationConfig(threads=1)
    )
    # However late the meter's thread is on a busy machine.
    monkeypatch.setattr(energy, "_STALE_S", 600.0)
    for root in (write_nano(tmp_path / "nano"), tmp_path / "pc"):
        monkeypatch.setattr(device, "find_jetson", lambda root=root: find_jetson(root))
        daemon = Daemon(config)
        try:
            daemon.start()
            assert daemon._http is not None
            reply = httpx.post(f"{daemon._http.url}/v1/chat/completions", json=ASK, timeout=60)
            text = httpx.get(f"{daemon._http.url}/metrics", timeout=30).text
        finally:
            daemon.stop()
        assert "edgekit_model_info" in text
        on_nano = root.name == "nano"
        assert ("edgekit_board_power_watts 6.0" in text) == on_nano
        timings = reply.json()["timings"]
        assert [name in timings for name in ("prefill_j", "decode_j")] == [on_nano] * 2
        assert ("x-edgekit-joules" in reply.headers) == on_nano
        if on_nano:
            # 6 W throughout, from the first step to the end of the last.
            assert 0 < timings["decode_j"] + timings["prefill_j"] <= 6 * reply.elapsed.total_seconds()
            assert "edgekit_answer_energy_joules_total" in text
        assert ("the power mode is 25W; the fastest is MAXN_SUPER: sudo nvpmodel -m 2" in caplog.text) == on_nano
        caplog.clear()
        assert not [thread for thread in threading.enumerate() if thread.name == "energy"]
