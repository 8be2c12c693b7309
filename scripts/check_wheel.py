"""Checks that a wheel can be published and installed: tag, RECORD, version, kernel variants, and the shared library.

    python scripts/check_wheel.py dist/*.whl

Formats: PEP 427 (wheel), PEP 600 (manylinux), the ELF-64 gABI with GNU's symbol versions, Apple's mach-o/loader.h.
Needs the standard library alone.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

__all__ = ["VARIANTS", "Elf", "MachO", "WheelError", "check", "read_elf", "read_macho"]

# The kernels that a wheel for a platform must contain, best first.
VARIANTS = {
    "manylinux_2_28_x86_64": ("avx512vnni", "avx2", "plain"),
    "manylinux_2_28_aarch64": ("dotprod", "plain"),
    "macosx_11_0_arm64": ("dotprod", "plain"),
    "any": (),
}
_DISTRIBUTION = "edgekit_llm"
_LIBRARY = "edgekit/runners/cpu/_kernels.so"
_VERSION = "edgekit/VERSION"

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
# Of those that PEP 600 allows, what C and POSIX threads need.
_LIBRARIES = re.compile(r"lib(c|m|dl|pthread|rt)\.so\.\d+|ld-linux-.*\.so\.\d+")
_MACHO_CPUS = {"arm64": 0x0100000C}


class WheelError(Exception):
    """The wheel must not be published; the message says why."""


@dataclass(frozen=True, slots=True)
class Elf:
    """What the dynamic linker of Linux reads of a shared library.

    Attributes:
        machine: `e_machine`.
        needed: The libraries that it loads.
        versions: The symbol versions that it needs of them: `GLIBC_2.28`.
    """

    machine: int
    needed: tuple[str, ...]
    versions: frozenset[str]

    @property
    def glibc(self) -> tuple[int, ...]:
        """The oldest glibc that has all symbols."""
        numbers = [name.removeprefix("GLIBC_").split(".") for name in self.versions if name.startswith("GLIBC_")]
        return max((tuple(map(int, parts)) for parts in numbers), default=(0,))


@dataclass(frozen=True, slots=True)
class MachO:
    """What the dynamic linker of macOS reads of a shared library.

    Attributes:
        cpu: `cputype`.
        minimum: The oldest macOS that loads it.
        needed: The libraries that it loads.
        signed: Whether it has a code signature, without which Apple silicon does not run it.
    """

    cpu: int
    minimum: tuple[int, int]
    needed: tuple[str, ...]
    signed: bool


def check(path: Path) -> str:
    """Check a wheel, and return a line about it.

    Raises:
        WheelError: It must not be published.
    """
    distribution, _, rest = path.name.removesuffix(".whl").partition("-")
    version, _, tag = rest.partition("-")
    platform = tag.removeprefix("py3-none-")
    if distribution != _DISTRIBUTION or platform not in VARIANTS or tag != f"py3-none-{platform}":
        raise WheelError(f"{path.name}: neither the name nor the tag of a wheel that is published")
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _contents(archive)
    except zipfile.BadZipFile as error:
        raise WheelError(f"{path.name}: {error}") from error
    info = f"{distribution}-{version}.dist-info"
    try:
        _check_record(contents, f"{info}/RECORD")
        _check_metadata(contents, info, version, tag, pure=platform == "any")
        said = _check_library(contents, platform)
    except KeyError as error:
        raise WheelError(f"{path.name}: {error.args[0]} is missing") from error
    except (WheelError, struct.error, ValueError) as error:
        raise WheelError(f"{path.name}: {error}") from error
    return f"{path.name}: {said}"


def _contents(archive: zipfile.ZipFile) -> dict[str, bytes]:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise WheelError(f"{twice[0]} is in the archive twice")
    return {name: archive.read(name) for name in names}


def _check_record(contents: dict[str, bytes], record: str) -> None:
    rows = list(csv.reader(contents[record].decode().splitlines()))
    listed = Counter(row[0] for row in rows)
    if wrong := [name for name in {*listed, *contents} if listed[name] != 1 or name not in contents]:
        raise WheelError(f"RECORD and the archive differ: {min(wrong)}")
    for name, digest, size in rows:
        if name == record:
            if digest or size:
                raise WheelError("RECORD has a hash of itself")
            continue
        data = contents[name]
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if (digest, size) != (f"sha256={expected}", str(len(data))):
            raise WheelError(f"RECORD has another hash or size of {name}")


def _check_metadata(contents: dict[str, bytes], info: str, version: str, tag: str, *, pure: bool) -> None:
    metadata, wheel = (Parser().parsestr(contents[f"{info}/{name}"].decode()) for name in ("METADATA", "WHEEL"))
    name = str(metadata["Name"]).replace("-", "_")
    if (name, metadata["Version"]) != (_DISTRIBUTION, version):
        raise WheelError(f"METADATA is of {metadata['Name']} {metadata['Version']}")
    if contents[_VERSION].decode().strip() != version:
        raise WheelError(f"{_VERSION} is another version's")
    if (wheel.get_all("Tag"), wheel["Root-Is-Purelib"]) != ([tag], "true" if pure else "false"):
        raise WheelError("the file WHEEL has another tag than the name")


def _check_library(contents: dict[str, bytes], platform: str) -> str:
    libraries = [name for name in contents if name.endswith((".so", ".dylib", ".o", ".a"))]
    if platform == "any":
        if libraries:
            raise WheelError(f"{libraries[0]} is not for any machine")
        return "no kernels"
    if libraries != [_LIBRARY]:
        raise WheelError(f"there must be {_LIBRARY} and no other library, not {libraries or 'none'}")
    data = contents[_LIBRARY]
    found = re.search(rb"edgekit kernels for ([a-z0-9 ]+)\n", data)
    variants = tuple(found[1].decode().split()) if found else ()
    if variants != VARIANTS[platform]:
        raise WheelError(f"kernels for {', '.join(variants) or 'nothing'} and not {', '.join(VARIANTS[platform])}")
    name, major, minor, machine = re.fullmatch(r"([a-z]+)_(\d+)_(\d+)_(\w+)", platform).groups()  # type: ignore[union-attr]  # of VARIANTS
    oldest = int(major), int(minor)
    said = _check_macho(data, oldest, machine) if name == "macosx" else _check_elf(data, oldest, machine)
    return f"{', '.join(variants)}; {said}"


def _check_elf(data: bytes, oldest: tuple[int, int], machine: str) -> str:
    elf = read_elf(data)
    if elf.machine != _ELF_MACHINES[machine]:
        raise WheelError(f"a library for machine {elf.machine}, not {machine}")
    if elf.glibc > oldest:
        raise WheelError(f"the library needs glibc {_dotted(elf.glibc)}, newer than {_dotted(oldest)}")
    if others := [name for name in elf.needed if not _LIBRARIES.fullmatch(name)]:
        raise WheelError(f"the library needs {others[0]}, which not every Linux has")
    return f"glibc {_dotted(elf.glibc)} or later, needs {', '.join(elf.needed)}"


def _check_macho(data: bytes, oldest: tuple[int, int], machine: str) -> str:
    macho = read_macho(data)
    if macho.cpu != _MACHO_CPUS[machine]:
        raise WheelError(f"a library for CPU type {macho.cpu:#x}, not {machine}")
    if macho.minimum > oldest:
        raise WheelError(f"the library needs macOS {_dotted(macho.minimum)}, newer than {_dotted(oldest)}")
    if others := [name for name in macho.needed if not name.startswith("/usr/lib/libSystem.")]:
        raise WheelError(f"the library needs {others[0]}, which not every Mac has")
    if not macho.signed:
        raise WheelError("the library has no code signature, and Apple silicon does not run it")
    return f"macOS {_dotted(macho.minimum)} or later, signed"


def read_elf(data: bytes) -> Elf:
    """Read a shared library of Linux.

    Raises:
        WheelError: It is none of 64 bits, little-endian.
        struct.error: It is cut short.
    """
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 16) != (3,):
        raise WheelError("not a shared library of 64-bit Linux")
    (machine,) = struct.unpack_from("<H", data, 18)
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # type, offset, size, link, info (entries of a section of needed versions)
    headers = [struct.unpack_from("<4xI16xQQII", data, start + at * size) for at in range(count)]
    needed: list[str] = []
    versions: set[str] = set()
    for kind, offset, length, link, info in headers:
        if kind not in {6, 0x6FFFFFFE}:  # SHT_DYNAMIC, SHT_GNU_verneed
            continue
        strings = headers[link][1]
        if kind == 6:
            entries = struct.iter_unpack("<QQ", data[offset : offset + length])
            needed += [_string(data, strings + value) for tag, value in entries if tag == 1]  # DT_NEEDED
        else:
            versions.update(_string(data, strings + name) for name in _needed_versions(data, offset, info))
    return Elf(machine, tuple(needed), frozenset(versions))


def _needed_versions(data: bytes, offset: int, files: int) -> Iterator[int]:
    """Where the names of the versions are in the section's string table."""
    for _ in range(files):
        count, _, first, following = struct.unpack_from("<2xHIII", data, offset)
        at = offset + first
        for _ in range(count):
            name, step = struct.unpack_from("<8xII", data, at)
            yield name
            at += step
        offset += following


def read_macho(data: bytes) -> MachO:
    """Read a shared library of macOS.

    Raises:
        WheelError: It is none of 64 bits, for one processor.
        struct.error: It is cut short.
    """
    magic, cpu, kind, count = struct.unpack_from("<II4xII", data)
    if magic != 0xFEEDFACF or kind != 6:  # MH_DYLIB
        raise WheelError("not a shared library of 64-bit macOS")
    at, minimum, needed, signed = 32, None, [], False
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command == 0x32:  # LC_BUILD_VERSION
            platform, version = struct.unpack_from("<II", data, at + 8)
            if platform != 1:
                raise WheelError(f"a library for Apple's platform {platform}, not macOS")
            minimum = version >> 16, version >> 8 & 255
        elif command == 0x24:  # LC_VERSION_MIN_MACOSX
            (version,) = struct.unpack_from("<I", data, at + 8)
            minimum = version >> 16, version >> 8 & 255
        elif command in {0xC, 0x80000018, 0x8000001F}:  # LC_LOAD_DYLIB, _WEAK_, LC_REEXPORT_DYLIB
            (name,) = struct.unpack_from("<I", data, at + 8)
            needed.append(_string(data, at + name))
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            signed = True
        at += size
    if minimum is None:
        raise WheelError("the library does not say which macOS it needs")
    return MachO(cpu, minimum, tuple(needed), signed)


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def main() -> int:
    """Check the wheels that the command line names, up to the first that must not be published."""
    try:
        for path in sys.argv[1:]:
            sys.stdout.write(f"{check(Path(path))}\n")
    except WheelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
