"""Electrical power, from the board's INA3221 monitors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.files import numbered, read_number, read_text

__all__ = ["Rail", "RailFiles", "find_rails", "total_watts"]

_CHANNELS = (1, 2, 3)
_MAX_LABEL = 40
_MAX_WATTS = 500.0
# Input of the module, on Orin NX and Nano.
_INPUT = "VDD_IN"
# The rails that feed an AGX Orin's module; its other ones are fed by VIN_SYS_5V0.
_INPUTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


@dataclass(frozen=True, slots=True)
class Rail:
    """A supply rail.

    Attributes:
        label: Its name, such as "VDD_IN".
        millivolts: The file with its voltage.
        milliamperes: The file with its current.
        alarm: The file that says whether the current is above the critical limit, at which the clocks are lowered.
    """

    label: str
    millivolts: Path
    milliamperes: Path
    alarm: Path

    def watts(self) -> float | None:
        """Return the power; None if it cannot be read. Each file takes a transfer on the I²C bus."""
        voltage, current = read_number(self.millivolts), read_number(self.milliamperes)
        if voltage is None or current is None:
            return None
        power = voltage * current / 1e6
        return power if 0 <= power <= _MAX_WATTS else None


@dataclass(frozen=True, slots=True)
class RailFiles:
    """Where the kernel shows power and overcurrent.

    Attributes:
        rails: All rails with a label.
        events: Name of an overcurrent event, such as "oc1", and the file with its count since boot.
    """

    rails: tuple[Rail, ...] = ()
    events: tuple[tuple[str, Path], ...] = ()

    def watts(self) -> dict[str, float]:
        """Return the power of each rail that can be read."""
        found = ((rail.label, rail.watts()) for rail in self.rails)
        return {label: power for label, power in found if power is not None}

    def total(self) -> float | None:
        """Return the power of the board, reading no other rails than that takes; None if it cannot be read."""
        labels = {rail.label: rail for rail in self.rails}
        needed = (_INPUT,) if _INPUT in labels else _INPUTS
        found = {label: power for label in needed if label in labels and (power := labels[label].watts()) is not None}
        return total_watts(found)

    def overcurrent(self) -> tuple[str, ...]:
        """Return the labels of the rails whose current is above the critical limit."""
        return tuple(rail.label for rail in self.rails if (read_number(rail.alarm) or 0) > 0)

    def event_counts(self) -> dict[str, int]:
        """Return how often the clocks were lowered since boot, by the kind of event."""
        found = ((name, read_number(file)) for name, file in self.events)
        return {name: count for name, count in found if count is not None and count >= 0}


def total_watts(watts: Mapping[str, float]) -> float | None:
    """Return the power of the board: its input on Orin NX and Nano, the sum of three rails on AGX Orin.

    Args:
        watts: Power by rail.
    """
    if _INPUT in watts:
        return watts[_INPUT]
    return sum(watts[label] for label in _INPUTS) if all(label in watts for label in _INPUTS) else None


def find_rails(root: Path = Path("/")) -> RailFiles:
    """Find the rails and the overcurrent events.

    Args:
        root: Folder that contains /sys.
    """
    rails: dict[str, Rail] = {}
    events: list[tuple[str, Path]] = []
    for folder in numbered(root / "sys/class/hwmon", "hwmon"):
        name = read_text(folder / "name")
        if name == "ina3221":
            for channel in _CHANNELS:
                label = read_text(folder / f"in{channel}_label") or ""
                if _names_a_rail(label):
                    current = folder / f"curr{channel}_input"
                    alarm = folder / f"curr{channel}_crit_alarm"
                    rails.setdefault(label, Rail(label, folder / f"in{channel}_input", current, alarm))
        elif name == "soctherm_oc":
            events += [(f"oc{number}", folder / f"oc{number}_event_cnt") for number in _CHANNELS]
    return RailFiles(tuple(rails.values()), tuple(events))


def _names_a_rail(label: str) -> bool:
    # NC is a channel that is not connected.
    return 0 < len(label) <= _MAX_LABEL and label.isprintable() and label != "NC"
