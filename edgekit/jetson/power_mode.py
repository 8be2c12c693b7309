"""The power mode that nvpmodel has set, and the fastest one of the board."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.files import read_text
from edgekit.programs import output_of

__all__ = ["PowerMode", "find_power_mode", "parse_nvpmodel"]

_CONFIGURATION_BYTES = 1 << 20
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PowerMode:
    """A power mode: limits of clocks and cores.

    Attributes:
        name: Such as "15W", "MAXN" or "MAXN_SUPER".
        id: Its number, for `nvpmodel -m`.
        fastest: Name and id of the board's fastest mode; None if this is it, or if that is not known.
    """

    name: str
    id: int
    fastest: tuple[str, int] | None = None


def find_power_mode(root: Path = Path("/")) -> PowerMode | None:
    """Return the power mode; None if it is not known.

    nvpmodel keeps the mode in a file that everyone can read. The program itself is asked if that is missing.

    Args:
        root: Folder that contains /etc and /var; nvpmodel is not run if it is not /.
    """
    configuration = read_text(root / "etc/nvpmodel.conf", _CONFIGURATION_BYTES) or ""
    modes = {
        int(match[1]): match[2]
        for match in re.finditer(r"^\s*<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=(\S+)\s*>", configuration, re.MULTILINE)
    }
    kept = re.fullmatch(r"pmode:([0-9]{1,4})(?:\s.*)?", read_text(root / "var/lib/nvpmodel/status") or "", re.DOTALL)
    if kept is not None and int(kept[1]) in modes:
        number = int(kept[1])
        return PowerMode(modes[number], number, _faster(modes[number], modes))
    asked = parse_nvpmodel(output_of("nvpmodel", "-q", timeout_s=_TIMEOUT_S)) if root == Path("/") else None
    return None if asked is None else PowerMode(asked[0], asked[1], _faster(asked[0], modes))


def parse_nvpmodel(output: str) -> tuple[str, int] | None:
    """Parse the output of `nvpmodel -q`: the line `NV Power Mode: MAXN_SUPER`, and the id on the next one."""
    match = re.search(r"^NV Power Mode:\s*(\S+)\s*\n\s*([0-9]{1,4})\s*$", output, re.MULTILINE)
    return None if match is None else (match[1], int(match[2]))


def _faster(name: str, modes: dict[int, str]) -> tuple[str, int] | None:
    """The fastest mode, if it is faster than this one; ids have no order."""
    number, best = max(modes.items(), key=lambda mode: _watts(mode[1]), default=(0, name))
    return (best, number) if 0 < _watts(name) < _watts(best) else None


def _watts(name: str) -> float:
    """The power that a mode allows, to compare modes by; 0 for a mode of the user's own, which has another name."""
    if name.startswith("MAXN"):
        return 1e4 if name == "MAXN_SUPER" else 1e3
    match = re.search(r"(\d{1,3})W", name, re.ASCII)
    return float(match[1]) if match else 0.0
