"""The Jetson that the daemon runs on, for `/metrics`, the MQTT status and the energy of answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from edgekit.daemon.metrics import Metrics
from edgekit.jetson.device import Jetson, find_jetson
from edgekit.jetson.energy import EnergyMeter

__all__ = ["Board", "device_metrics", "device_status"]

logger = logging.getLogger(__name__)


class Board:
    """Names the board, shows its sensors, and measures energy if they can; on another machine it does nothing.

    Args:
        metrics: Where the sensors are shown.

    Attributes:
        jetson: The board, once started; None on another machine.
        meter: Measures energy, while started; None where that cannot be measured.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.meter: EnergyMeter | None = None
        self._metrics = metrics
        self.jetson: Jetson | None = None

    def start(self) -> None:
        """Find the board."""
        self.jetson = jetson = find_jetson()
        if jetson is None:
            return
        logger.info("running on %s, %s", jetson.board, jetson.jetpack or "unknown JetPack")
        mode = jetson.read().power_mode
        if mode is not None and mode.fastest is not None:
            name, number = mode.fastest
            logger.warning("the power mode is %s; the fastest is %s: sudo nvpmodel -m %d", mode.name, name, number)
        self._metrics.watch_device(partial(device_metrics, jetson))
        if jetson.rails.total() is not None:
            self.meter = EnergyMeter(jetson.rails.total)
            self.meter.start()
            self._metrics.watch_energy()

    def stop(self) -> None:
        """Stop measuring."""
        if self.meter is not None:
            self.meter.stop()

    @property
    def status(self) -> Callable[[], dict[str, object]] | None:
        """Returns the `device` of an MQTT status; None on another machine."""
        return None if self.jetson is None else partial(device_status, self.jetson)


def device_status(jetson: Jetson) -> dict[str, object]:
    """Return the `device` of an MQTT status: what is unknown is null.

    Args:
        jetson: The board.
    """
    reading = jetson.read()
    total = reading.total_watts
    return {
        "board": str(jetson.board),
        "jetpack": None if jetson.jetpack is None else jetson.jetpack.version,
        "power_mode": None if reading.power_mode is None else reading.power_mode.name,
        "temperature_c": max(reading.temperatures.values(), default=None),
        "power_w": None if total is None else round(total, 3),
        "gpu_load": reading.gpu.load,
        "throttled": None if reading.throttled_by is None else bool(reading.throttled_by),
    }


def device_metrics(jetson: Jetson) -> Iterable[Metric]:
    """Yield the board's metrics, of one reading; what it has no sensor for is absent.

    Args:
        jetson: The board.
    """
    reading = jetson.read()
    facts = {"board": str(jetson.board), "module": jetson.board.part or ""}
    if jetson.jetpack is not None:
        facts |= {"jetpack": jetson.jetpack.version, "l4t": ".".join(map(str, jetson.jetpack.l4t))}
    yield InfoMetricFamily("edgekit_device", "The board and its system software.", value=facts)
    if reading.power_mode is not None:
        mode = {"mode": reading.power_mode.name, "id": str(reading.power_mode.id)}
        yield InfoMetricFamily("edgekit_power_mode", "The board's power mode.", value=mode)
    gauges: tuple[tuple[str, str, float | None], ...] = (
        ("gpu_load_ratio", "Share of time that the GPU was busy, 0 to 1.", reading.gpu.load),
        ("gpu_clock_hertz", "Clock of the GPU.", reading.gpu.clock_hz),
        ("gpu_max_clock_hertz", "Highest clock of the GPU in this power mode.", reading.gpu.max_clock_hz),
        ("board_power_watts", "Power of the board.", reading.total_watts),
        (
            "throttled",
            "1 while clocks are lowered because of heat or overcurrent, else 0.",
            None if reading.throttled_by is None else float(bool(reading.throttled_by)),
        ),
    )
    for name, help_text, value in gauges:
        if value is not None:
            yield GaugeMetricFamily(f"edgekit_{name}", help_text, value=value)
    labelled = (
        ("temperature_celsius", "Temperature, by thermal zone.", "zone", reading.temperatures),
        ("power_watts", "Power, by supply rail; rails may feed each other.", "rail", reading.watts),
    )
    for name, help_text, label, values in labelled:
        if values:
            family = GaugeMetricFamily(f"edgekit_{name}", help_text, labels=[label])
            for key, measured in values.items():
                family.add_metric([key], measured)
            yield family
    if reading.overcurrent_events:
        events = CounterMetricFamily(
            "edgekit_overcurrent_events",
            "How often clocks were lowered since boot for under-voltage (oc1) or overcurrent.",
            labels=["event"],
        )
        for event, count in reading.overcurrent_events.items():
            events.add_metric([event], count)
        yield events
