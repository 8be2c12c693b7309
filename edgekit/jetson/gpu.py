"""Load and clock of a Jetson's GPU; NVML knows neither there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgekit.jetson.files import MAX_ENTRIES, read_number, read_text

__all__ = ["GpuFiles", "GpuState", "find_gpu"]

# Names of the GPU's node in the device tree: JetPack 6 and 7, JetPack 5 on Orin.
_NODES = frozenset({"gpu", "ga10b"})


@dataclass(frozen=True, slots=True)
class GpuState:
    """The GPU at one moment; what cannot be read is None.

    Attributes:
        load: Share of time that it was busy, 0 to 1.
        clock_hz: Its clock.
        max_clock_hz: The highest clock that the power mode allows.
    """

    load: float | None = None
    clock_hz: int | None = None
    max_clock_hz: int | None = None


@dataclass(frozen=True, slots=True)
class GpuFiles:
    """Where the kernel shows the GPU's state.

    Attributes:
        load: The file with the load; None without one.
        clocks: The folder with `cur_freq` and `max_freq`; None without one.
    """

    load: Path | None
    clocks: Path | None

    def read(self) -> GpuState:
        """Return the state."""
        load = None if self.load is None else read_number(self.load)
        clock = None if self.clocks is None else read_number(self.clocks / "cur_freq")
        highest = None if self.clocks is None else read_number(self.clocks / "max_freq")
        return GpuState(
            # In thousandths.
            load=load / 1000 if load is not None and 0 <= load <= 1000 else None,
            clock_hz=clock if clock is not None and clock >= 0 else None,
            max_clock_hz=highest if highest is not None and highest > 0 else None,
        )


def find_gpu(root: Path = Path("/")) -> GpuFiles:
    """Find the GPU's files.

    Args:
        root: Folder that contains /sys.
    """
    folder = root / "sys/class/devfreq"
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        names = []
    clocks = next((folder / name for name in names if read_text(folder / name / "device/of_node/name") in _NODES), None)
    platform = root / "sys/devices/platform"
    places = [] if clocks is None else [clocks / "device/load"]
    places += [at / f"17000000.{name}" / "load" for at in (platform / "bus@0", platform) for name in sorted(_NODES)]
    return GpuFiles(load=next((place for place in places if read_number(place) is not None), None), clocks=clocks)
