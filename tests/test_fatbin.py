from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from edgekit.fatbin import GpuCode, gpu_code


def container(*entries: tuple[int, int]) -> bytes:
    """A container of (kind, architecture) entries, with a few bytes of code each."""
    body = b"".join(
        struct.pack("<HHIQIIHHI", kind, 0x101, 64, 16, 0, 0, 0, 0, capability).ljust(64, b"\0") + b"code" * 4
        for kind, capability in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_the_architectures_of_every_container_are_found(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"ELF" * 99 + container((2, 89), (2, 90), (1, 90)) + b"\0" * 7 + container((2, 121)))
    assert gpu_code(library) == GpuCode(frozenset({89, 90, 121}), frozenset({90}))


def test_a_jetson_needs_machine_code_of_its_own_or_ptx_that_is_as_old() -> None:
    assert GpuCode(frozenset({87}), frozenset()).runs_on_jetson(87)
    assert GpuCode(frozenset(), frozenset({80})).runs_on_jetson(87)
    assert not GpuCode(frozenset({80, 86, 89}), frozenset({90})).runs_on_jetson(87)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x50\xed\x55\xba",
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 60),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + bytes(64),
        b"\x50\xed\x55\xba" * 1000,
    ],
)
def test_a_damaged_library_has_no_code(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lib.so").write_bytes(content)
    found = gpu_code(tmp_path / "lib.so")
    assert found is None if not content else found == GpuCode(frozenset(), frozenset())
    assert gpu_code(tmp_path / "missing.so") is None


def test_nvidias_own_library_is_read() -> None:
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt_rtx is not installed")
    (library,) = Path(spec.submodule_search_locations[0]).glob("libtensorrt_rtx.so.*")
    found = gpu_code(library)
    assert found is not None
    # As its documentation says: Ampere, Ada, Hopper, Blackwell.
    assert {80, 86, 90, 120} <= found.cubins
    assert not found.runs_on_jetson(72)
