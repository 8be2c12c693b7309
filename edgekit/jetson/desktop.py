"""Whether a desktop runs on this machine, and the memory that it holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgekit.jetson.files import read_text

__all__ = ["STOP_DESKTOP", "Desktop", "find_desktop"]

STOP_DESKTOP = "sudo systemctl set-default multi-user.target && sudo reboot"
"""Starts the machine without a desktop from now on; `graphical.target` brings it back."""

# As the kernel shortens them, to 15 characters: display servers, desktops and their login screens.
_PROGRAMS = frozenset(
    {"Xorg", "Xwayland", "gnome-shell", "gdm-x-session", "gdm-wayland-ses", "lightdm", "lxsession", "xfce4-session"}
)
_MAX_PROCESSES = 4096


@dataclass(frozen=True, slots=True)
class Desktop:
    """A running desktop.

    Attributes:
        programs: Names of its processes, sorted.
        memory_bytes: Memory that is theirs alone; what they share, and their buffers on the GPU, come on top.
    """

    programs: tuple[str, ...]
    memory_bytes: int

    def __str__(self) -> str:
        """Names and memory, "Xorg, gnome-shell hold 0.8 GiB and more"."""
        verb = "holds" if len(self.programs) == 1 else "hold"
        return f"{', '.join(self.programs)} {verb} {self.memory_bytes / (1 << 30):.1f} GiB and more"


def find_desktop(root: Path = Path("/")) -> Desktop | None:
    """Return the desktop that runs here; None if there is none.

    Args:
        root: Folder that contains /proc.
    """
    try:
        with os.scandir(root / "proc") as entries:
            processes = [entry.name for entry in islice(entries, _MAX_PROCESSES) if entry.name.isdecimal()]
    except OSError:
        return None
    found: dict[str, int] = {}
    for process in processes:
        name = read_text(root / "proc" / process / "comm")
        if name in _PROGRAMS:
            found[name] = found.get(name, 0) + _private_bytes(root / "proc" / process)
    return Desktop(tuple(sorted(found)), sum(found.values())) if found else None


def _private_bytes(process: Path) -> int:
    """Pages in memory, less those shared with other processes: the second and third number of `statm`."""
    numbers = (read_text(process / "statm") or "").split()
    if len(numbers) < 3 or not all(text.isascii() and text.isdecimal() and len(text) < 16 for text in numbers[1:3]):
        return 0
    return max(0, int(numbers[1]) - int(numbers[2])) * os.sysconf("SC_PAGE_SIZE")
