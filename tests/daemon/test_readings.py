from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from edgekit.daemon.readings import AnswerTotals, Load, Readings, Sensors
from edgekit.generation.usage import Timings, Usage
from tests.daemon.machine_at_work import WorkerDouble, nano_readings, plain_readings

PAGE = os.sysconf("SC_PAGE_SIZE")


def test_a_jetson_has_memory_temperature_power_and_energy(tmp_path: Path) -> None:
    readings = nano_readings(tmp_path, WorkerDouble())
    assert "Orin Nano" in (readings.board or "")
    assert asdict(readings.sensors()) == {
        "memory_mib": 102_400 * PAGE / 2**20,
        "memory_available_mib": 4096.0,
        "temperature_c": 52.5,
        "power_w": 6.0,
        "energy_wh": pytest.approx(3.0, abs=0.01),
    }


def test_a_machine_without_sensors_has_only_memory(tmp_path: Path) -> None:
    sensors = plain_readings(tmp_path, None).sensors()
    assert sensors == Sensors(102_400 * PAGE / 2**20, 4096.0)
    assert Readings(AnswerTotals(), lambda: None, root=tmp_path / "gone").sensors() == Sensors()


def test_this_machine_is_read_without_an_error() -> None:
    sensors = Readings(AnswerTotals(), lambda: None).sensors()
    if os.path.exists("/proc/self/statm"):  # noqa: PTH110
        assert (sensors.memory_mib or 0) > 1
        assert (sensors.memory_available_mib or 0) > 1


def test_the_load_follows_the_worker_and_counts_finished_answers(tmp_path: Path) -> None:
    totals, worker = AnswerTotals(), WorkerDouble(running=2, waiting=1)
    readings = plain_readings(tmp_path, worker, totals)
    assert readings.load() == Load("ready", running=2, waiting=1, slots=8)
    assert (readings.load().credits, readings.load().share) == (6, 0.25)
    totals.add(Usage(10, 21), Timings(0.0, 0.5, 2.0))
    totals.add(Usage(10, 1), Timings(0.0, 0.5, 0.0))  # one token has no decode speed
    load = readings.load()
    assert (load.completion_tokens, load.decode_tokens_per_s) == (22, 10.0)
    worker.running, worker.waiting = 8, 5
    assert (readings.load().credits, readings.load().share) == (0, 1.0)


def test_a_device_that_does_not_answer_gives_no_credits(tmp_path: Path) -> None:
    loading = plain_readings(tmp_path, None).load()
    assert (loading.state, loading.credits, loading.share) == ("loading", 0, 0.0)
    failed = plain_readings(tmp_path, WorkerDouble(0, 0, accepting=False, failed=True)).load()
    assert (failed.state, failed.credits) == ("failed", 0)
    stopping = plain_readings(tmp_path, WorkerDouble(1, 0, accepting=False)).load()
    assert (stopping.state, stopping.credits) == ("ready", 0)
