"""Which Jetson this is, from the device tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.files import read_bytes

__all__ = ["Board", "device_tree", "find_board"]

# Module -> name and memory. Source: NVIDIA, Jetson Linux Developer Guide, "Jetson Modules and Configurations".
_MODULES = {
    "p3701-0000": "AGX Orin 32 GB (first developer kit)",
    "p3701-0004": "AGX Orin 32 GB",
    "p3701-0005": "AGX Orin 64 GB",
    "p3701-0008": "AGX Orin Industrial 64 GB",
    "p3767-0000": "Orin NX 16 GB",
    "p3767-0001": "Orin NX 8 GB",
    "p3767-0003": "Orin Nano 8 GB",
    "p3767-0004": "Orin Nano 4 GB",
    "p3767-0005": "Orin Nano 8 GB (developer kit)",
}


@dataclass(frozen=True, slots=True)
class Board:
    """A Jetson, as its device tree describes it.

    Attributes:
        model: The model string, or the module's name if there is none.
        part: The module's part number, such as "p3767-0005"; None if the device tree names none.
        module: Its name, such as "Orin Nano 8 GB"; None if the part number is not a known one.
        super_clocks: The device tree is a `-super` one, with the higher clocks and power modes of JetPack 6.2.
    """

    model: str
    part: str | None
    module: str | None
    super_clocks: bool

    @property
    def has_super_variant(self) -> bool:
        """Whether NVIDIA has a `-super` device tree for the module: for Orin NX and Orin Nano."""
        return self.part is not None and self.part.startswith("p3767-")

    def __str__(self) -> str:
        """The model, with its module where the model string does not say which."""
        if self.module is None or self.module in self.model:
            return self.model
        return f"{self.model}, {self.module}"


def device_tree(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the model and then the compatible strings of the device tree; empty on a machine without one.

    Args:
        root: Folder that contains /proc.
    """
    found: list[str] = []
    for name in ("model", "compatible"):
        raw = read_bytes(root / "proc/device-tree" / name) or b""
        found += [part.decode("utf-8", "replace") for part in raw.split(b"\0") if part]
    return tuple(found)


def find_board(tree: tuple[str, ...]) -> Board | None:
    """Return the Jetson that a device tree describes; None if it is no Tegra's.

    Args:
        tree: From `device_tree`.
    """
    if not any("tegra" in item for item in tree):
        return None
    # Carrier and module, `nvidia,p3768-0000+p3767-0005-super`; a carrier alone is no module.
    parts = [match for item in tree if (match := re.search(r"(p\d{4}-\d{4})(-super)?$", item))]
    part = next((match[1] for match in parts if match[1] in _MODULES), parts[0][1] if parts else None)
    module = _MODULES.get(part or "")
    return Board(
        model=next((item for item in tree if "," not in item), f"NVIDIA Jetson {module or part or ''}".strip()),
        part=part,
        module=module,
        super_clocks=any(match[2] for match in parts),
    )
