"""Temperatures, and whether the kernel throttles because of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.files import numbered, read_number, read_text

__all__ = ["ThermalFiles", "find_thermal"]

_MAX_NAME = 40
_PLAUSIBLE_C = (-60.0, 150.0)


@dataclass(frozen=True, slots=True)
class ThermalFiles:
    """Where the kernel shows temperatures and throttling.

    Attributes:
        zones: Name of a thermal zone, such as "gpu-thermal", and the file with its temperature.
        alerts: Name of a throttling alert, such as "gpu-throttle-alert", and the file with its state.
    """

    zones: tuple[tuple[str, Path], ...] = ()
    alerts: tuple[tuple[str, Path], ...] = ()

    def temperatures(self) -> dict[str, float]:
        """Return the temperature of each zone that is on, in °C.

        The sensor of a part that is switched off cannot be read, or reads -256 °C.
        """
        found: dict[str, float] = {}
        for name, file in self.zones:
            value = read_number(file)
            if value is not None and _PLAUSIBLE_C[0] <= value / 1000 <= _PLAUSIBLE_C[1]:
                # Of zones with the same name, the hottest.
                found[name] = max(value / 1000, found.get(name, _PLAUSIBLE_C[0]))
        return found

    def throttling(self) -> tuple[str, ...]:
        """Return the names of the alerts that are on: the kernel lowers the clocks of that part."""
        return tuple(dict.fromkeys(name for name, file in self.alerts if (read_number(file) or 0) > 0))


def find_thermal(root: Path = Path("/")) -> ThermalFiles:
    """Find the thermal zones and alerts.

    Args:
        root: Folder that contains /sys.
    """
    folder = root / "sys/class/thermal"
    alerts = ((_name(item), item / "cur_state") for item in numbered(folder, "cooling_device"))
    return ThermalFiles(
        zones=tuple((_name(item), item / "temp") for item in numbered(folder, "thermal_zone")),
        # Others are fans, and the clocks that the alerts lower.
        alerts=tuple(alert for alert in alerts if alert[0].endswith("-throttle-alert")),
    )


def _name(folder: Path) -> str:
    """The kind of a zone or a cooling device; the folder's name if it has none that can be shown."""
    text = read_text(folder / "type") or ""
    return text if 0 < len(text) <= _MAX_NAME and text.isprintable() else folder.name
