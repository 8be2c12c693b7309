"""Lists the GPU architectures that a compiled library has code for, without loading it."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GpuCode", "gpu_code"]

# A container of code for several architectures, as nvcc embeds it: magic number, version and size of the header, and
# size of what follows, which is a list of entries. Of an entry: kind, size of its header, size of the code. The layout
# is not documented by NVIDIA; a test reads their own library with it.
_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
_PTX, _CUBIN = 1, 2


@dataclass(frozen=True, slots=True)
class GpuCode:
    """GPU code in a library, by compute capability without the dot: 87 is 8.7.

    Attributes:
        cubins: Machine code.
        ptx: Intermediate code, which the driver compiles for any GPU that is as new or newer.
    """

    cubins: frozenset[int]
    ptx: frozenset[int]

    def runs_on_jetson(self, capability: int) -> bool:
        """Return whether a Jetson can run it.

        Unlike a desktop card, a Jetson runs no machine code of another minor version (NVIDIA, CUDA C++ Programming
        Guide, "Binary Compatibility").

        Args:
            capability: The GPU's compute capability without the dot.
        """
        return capability in self.cubins or any(version <= capability for version in self.ptx)


def gpu_code(library: Path) -> GpuCode | None:
    """Return the GPU code in a library; None if it cannot be read.

    Args:
        library: A shared library.
    """
    found: dict[int, set[int]] = {_PTX: set(), _CUBIN: set()}
    try:
        with library.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) as data:
            for kind, capability in _entries(data):
                found.setdefault(kind, set()).add(capability)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None
    return GpuCode(cubins=frozenset(found[_CUBIN]), ptx=frozenset(found[_PTX]))


def _entries(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield kind and architecture of each entry of each container."""
    position = data.find(_MAGIC)
    while position >= 0:
        following = position + len(_MAGIC)
        if position + _HEADER.size <= len(data):
            _, version, header, size = _HEADER.unpack_from(data, position)
            # The magic number may also be four bytes of something else.
            if version == 1 and header == _HEADER.size and position + header + size <= len(data):
                following = position + header + size
                yield from _container(data, position + header, following)
        position = data.find(_MAGIC, following)


def _container(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start + _ENTRY.size <= end:
        kind, _, header, size, capability = _ENTRY.unpack_from(data, start)
        if header < _ENTRY.size:
            return
        yield kind, capability
        start += header + size
