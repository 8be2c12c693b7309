from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgekit.jetson import energy
from edgekit.jetson.energy import EnergyMark, EnergyMeter


class Board:
    """A board whose power and time a test sets."""

    def __init__(self, power: float | None = 10.0) -> None:
        self.now = 100.0
        self.power = power
        self.meter = EnergyMeter(lambda: self.power, clock=lambda: self.now)

    def after(self, seconds: float, power: float | None) -> None:
        """Sample the power some time later."""
        self.now += seconds
        self.power = power
        self.meter.sample()


def test_power_is_integrated_and_known_between_samples_too() -> None:
    board = Board()
    board.meter.sample()
    start = board.meter.mark()
    board.now += 0.04
    assert board.meter.mark().since(start) == pytest.approx(0.4)
    board.after(0.06, 20.0)
    assert board.meter.mark().since(start) == pytest.approx(1.0)
    board.now += 0.1
    assert board.meter.mark().since(start) == pytest.approx(3.0)


def test_one_failed_reading_is_bridged_and_many_make_the_energy_unknown() -> None:
    board = Board()
    board.meter.sample()
    start = board.meter.mark()
    board.after(1.0, None)
    assert board.meter.mark().since(start) == pytest.approx(10.0)
    board.after(2.5, None)
    assert board.meter.mark().since(start) is None
    board.after(0.1, 5.0)
    later = board.meter.mark()
    # What was used in the gap is not known, so nothing that contains it is.
    assert later.since(start) is None
    board.now += 1.0
    assert board.meter.mark().since(later) == pytest.approx(5.0)


def test_without_a_sample_nothing_is_known() -> None:
    board = Board(power=None)
    board.meter.sample()
    assert board.meter.mark() == EnergyMark(None, 0)
    assert board.meter.mark().since(board.meter.mark()) is None


def test_the_energy_never_shrinks_even_if_the_clock_is_read_before_a_sample() -> None:
    board = Board()
    board.meter.sample()
    board.after(0.1, 50.0)
    ahead = board.meter.mark()
    board.now -= 0.05
    assert board.meter.mark().since(ahead) == 0.0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_thread_reads_the_power_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SAMPLE_S", 0.001)
    readings: list[float] = []

    def watts() -> float:
        readings.append(7.0)
        return 7.0

    meter = EnergyMeter(watts)
    meter.start()
    start = meter.mark()
    assert start.joules is not None  # known at once, before the thread has run
    _until(lambda: len(readings) > 5)
    spent = meter.mark().since(start)
    assert spent is not None
    assert spent > 0
    meter.stop()
    read = len(readings)
    meter.stop()
    assert len(readings) == read


def test_a_meter_that_was_idle_wakes_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only asking can end this wait.
    monkeypatch.setattr(energy, "IDLE_S", 3600.0)
    monkeypatch.setattr(energy, "SAMPLE_S", 0.001)
    now = [0.0]
    readings: list[float] = []

    def watts() -> float:
        readings.append(7.0)
        return 7.0

    meter = EnergyMeter(watts, clock=lambda: now[0])
    now[0] = 60.0
    meter.start()
    meter.mark()
    _until(lambda: len(readings) > 3)
    meter.stop()


def test_a_sensor_that_raises_ends_the_measuring_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([5.0])
    meter = EnergyMeter(lambda: next(answers))
    meter.start()
    thread = meter._thread
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
    assert "the power cannot be read" in caplog.text
    meter.stop()
