"""Runs kernels in another process for `CpuRunner`: of another architecture, or with sanitizers.

In the other process, remote.c calls library functions on request. Here, addresses are replaced by those of copies in
the other process; memory that a step reads or writes is copied before and after it. So `CpuRunner` itself is tested.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, cast

from edgekit.runners.cpu.build import Compiler, compile_kernels, find_compiler
from edgekit.runners.cpu.library import Kernels

__all__ = ["QEMU", "Remote", "compiled", "kernels_of"]

# Debian's qemu-user, or the program of qemu-user-static; the libraries are of libc6-arm64-cross.
_EMULATOR = "qemu-aarch64" if shutil.which("qemu-aarch64") else "qemu-aarch64-static"
QEMU = (_EMULATOR, "-L", "/usr/aarch64-linux-gnu", "-cpu", "max")
_HERE = Path(__file__).parent
_SOURCES = _HERE.parents[2] / "edgekit" / "runners" / "cpu" / "csrc"


class _SanitizingCompiler(Compiler):
    """Optimizes little and tracks no variables for debuggers: with a sanitizer, both take minutes to compile."""

    def flags(self) -> list[str]:
        return [*super().flags(), "-O1", "-fno-var-tracking"]


def compiled(compiler: str, folder: Path) -> tuple[Path, Path]:
    """Compile the kernels and remote.c with a compiler and its flags; return the program and the library."""
    found = find_compiler({"EDGEKIT_KERNEL_CC": compiler, "PATH": os.environ["PATH"]})
    if "-fsanitize" in compiler:
        found = _SanitizingCompiler(found.command, found.target)
    built = compile_kernels(found, _SOURCES, folder / "kernels.so")
    assert not built.left_out, built.describe()
    program = folder / "remote"
    subprocess.run([*found.command, "-O1", _HERE / "remote.c", "-o", program, "-ldl"], check=True)
    return program, built.library


class Remote:
    """The other process.

    Args:
        command: Runs remote.c with a library.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._in: Any = self._process.stdin
        self._out: Any = self._process.stdout
        self._errors: Any = self._process.stderr

    def close(self) -> str:
        """End the process, and return its standard error."""
        self._in.close()
        errors: str = self._errors.read().decode()
        self._process.wait(60)
        self._out.close()
        self._errors.close()
        return errors

    def reserve(self, size: int) -> int:
        """Allocate bytes and return their address."""
        self._send(0, max(size, 1))
        return self._word()

    def free(self, address: int) -> None:
        """Free allocated bytes."""
        self._send(1, address)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes to the other process."""
        self._send(2, address, len(data))
        self._in.write(data)

    def read(self, address: int, size: int) -> bytes:
        """Read bytes from the other process."""
        self._send(3, address, size)
        self._in.flush()
        return self._receive(size)

    def call(self, name: str, integers: Sequence[int], floats: Sequence[float] = ()) -> int:
        """Call a function and return its result as 64 bits."""
        self._send(4, len(name))
        self._in.write(name.encode())
        bits = [struct.unpack("<I", struct.pack("<f", value))[0] for value in floats]
        self._send(*integers, *[0] * (14 - len(integers)), *bits, *[0] * (2 - len(bits)))
        return self._word()

    def _send(self, *words: int) -> None:
        self._in.write(struct.pack(f"<{len(words)}Q", *(word & (1 << 64) - 1 for word in words)))

    def _word(self) -> int:
        self._in.flush()
        return int(struct.unpack("<Q", self._receive(8))[0])

    def _receive(self, size: int) -> bytes:
        data: bytes = self._out.read(size)
        if len(data) != size:
            raise OSError(f"the other process ended: {self._errors.read().decode()}")
        return data


class _Mirror:
    """Memory of this process and its copy in the other, which is reallocated if it must grow."""

    def __init__(self, remote: Remote, address: int) -> None:
        self._remote, self._local_address = remote, address
        self._remote_address = self._size = 0

    def send(self, size: int) -> int:
        """Copy bytes to the other process and return their address; the allocation ends with them."""
        if size > self._size or not self._remote_address:
            self.free()
            self._remote_address, self._size = self._remote.reserve(size), size
        self._remote.write(self._remote_address, ctypes.string_at(self._local_address, size))
        return self._remote_address

    def fetch(self, size: int) -> None:
        """Copy bytes back."""
        ctypes.memmove(self._local_address, self._remote.read(self._remote_address, size), size)

    def free(self) -> None:
        if self._remote_address:
            self._remote.free(self._remote_address)
        self._remote_address = self._size = 0


class _Model:
    """The sizes of a model that are needed to copy its memory."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.vocab, _, _, _, self.kv_heads, self.head_dim, _, self.positions = sizes
        self.layers: dict[int, tuple[int, float, int, list[_Mirror]]] = {}

    def cache_bytes(self, slots: int) -> int:
        """Bytes of a layer's keys, or of its values."""
        return 2 * slots * self.kv_heads * self.positions * self.head_dim

    def row_bytes(self) -> int:
        """Bytes of a position's keys and values in all layers."""
        return 2 * 2 * len(self.layers) * self.kv_heads * self.head_dim


class _Library:
    """Stands in for the ctypes library of `Functions`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._models: dict[int, _Model] = {}
        self.lock = RLock()

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("ek_"):
            raise AttributeError(name)
        return _Function(self, self._remote, name)

    def call_matrix_new(self, call: _Function, *given: Any) -> Any:
        arena, variant, out, width, bits, group, by_columns, codes, low, scales, offsets, zero, wide, bias = given
        groups = -(-width // group)
        # Two planes have 4 bits each.
        plane = -(-out * groups * group * (4 if by_columns else bits) // 8)
        sizes = (plane, plane, 4 * out * groups, 4 * out * groups, 4 * out)
        parts = [_Mirror(self._remote, address) if address else None for address in (codes, low, scales, offsets, bias)]
        *arrays, bias = (part and part.send(size) for part, size in zip(parts, sizes, strict=True))
        matrix = call.plain(arena, variant, out, width, bits, group, by_columns, *arrays, zero, wide, bias)
        for part in filter(None, parts):
            part.free()
        return matrix

    def call_model_new(self, call: _Function, variant: bytes, threads: int, *given: Any) -> Any:
        model = call.plain(variant, threads, *given)
        self._models[model] = _Model(given[:8])
        return model

    def call_model_free(self, call: _Function, model: int) -> None:
        call.plain(model)
        for *_, mirrors in self._models.pop(model).layers.values():
            for mirror in mirrors:
                mirror.free()

    def call_model_norm(self, call: _Function, *given: Any) -> Any:
        *before, size, weights = given
        mirror = _Mirror(self._remote, weights)
        failed = call.plain(*before, size, mirror.send(4 * size))
        mirror.free()
        return failed

    def call_model_layer(self, _: _Function, *given: Any) -> None:
        model, index, window, scale, rotary_dim, *arrays = given
        mirrors = [_Mirror(self._remote, address) for address in arrays]
        self._models[model].layers[index] = window, scale, rotary_dim, mirrors

    def call_step(self, call: _Function, *given: Any) -> Any:
        model, rows, tokens, chunks, chunk_table, wanted_count, wanted, logits = given
        m = self._models[model]
        parts = [struct.unpack_from("<4i", ctypes.string_at(chunk_table, 16 * chunks), 16 * i) for i in range(chunks)]
        slots = max(slot for slot, *_ in parts) + 1
        self._send_layers(model, slots, max(position + count for _, position, _, count in parts))
        arrays = [_Mirror(self._remote, address) for address in (tokens, chunk_table, wanted, logits)]
        sizes = (4 * rows, 16 * chunks, 4 * wanted_count, 4 * wanted_count * m.vocab)
        remote = [mirror.send(size) for mirror, size in zip(arrays, sizes, strict=True)]
        failed = call.plain(model, rows, remote[0], chunks, remote[1], wanted_count, remote[2], remote[3])
        self._fetch_cache(m, slots)
        arrays[3].fetch(sizes[3])
        for mirror in arrays:
            mirror.free()
        return failed

    def call_read_kv(self, call: _Function, *given: int) -> None:
        model, slot, start, count, rows = given
        self._send_layers(model, slot + 1, 0)
        size = self._models[model].row_bytes() * count
        mirror = _Mirror(self._remote, rows)
        call.plain(model, slot, start, count, mirror.send(size))
        mirror.fetch(size)
        mirror.free()

    def call_write_kv(self, call: _Function, *given: int) -> None:
        model, slot, start, count, rows = given
        m = self._models[model]
        self._send_layers(model, slot + 1, 0)
        mirror = _Mirror(self._remote, rows)
        call.plain(model, slot, start, count, mirror.send(m.row_bytes() * count))
        self._fetch_cache(m, slot + 1)
        mirror.free()

    def _send_layers(self, model: int, slots: int, positions: int) -> None:
        """Copy what may be read: the KV cache of the first slots, and the RoPE tables up to a position."""
        m = self._models[model]
        cache = m.cache_bytes(slots)
        for index, (window, scale, rotary_dim, mirrors) in m.layers.items():
            tables = 2 * rotary_dim * positions
            addresses = [
                mirror.send(size) for mirror, size in zip(mirrors, (tables, tables, cache, cache), strict=True)
            ]
            self._remote.call("ek_model_layer", [model, index, window, rotary_dim, *addresses], [scale])

    def _fetch_cache(self, model: _Model, slots: int) -> None:
        for *_, mirrors in model.layers.values():
            for mirror in mirrors[2:]:
                mirror.fetch(model.cache_bytes(slots))


class _Function:
    """Stands in for a ctypes function."""

    restype: Any = ctypes.c_int
    argtypes: Sequence[Any] = ()

    def __init__(self, library: _Library, remote: Remote, name: str) -> None:
        self._remote, self._name = remote, name
        self._special: Callable[..., Any] | None = getattr(library, name.replace("ek_", "call_"), None)
        self._lock = library.lock

    def __call__(self, *given: Any) -> Any:
        # Several threads create matrices at once.
        with self._lock:
            return self.plain(*given) if self._special is None else self._special(self, *given)

    def plain(self, *given: Any) -> Any:
        """Call it with addresses in the other process."""
        integers: list[int] = []
        floats: list[float] = []
        strings = []
        for kind, value in zip(self.argtypes, given, strict=True):
            if kind is ctypes.c_float:
                floats.append(value)
            elif kind is ctypes.c_char_p:
                strings.append(self._remote.reserve(len(value) + 1))
                self._remote.write(strings[-1], value + b"\0")
                integers.append(strings[-1])
            else:
                integers.append(int(value or 0))
        result = self._remote.call(self._name, integers, floats)
        for string in strings:
            self._remote.free(string)
        if self.restype is None:
            return None
        if self.restype is ctypes.c_char_p:
            return self._remote.read(result, 64).partition(b"\0")[0]
        return ctypes.c_int(result).value if self.restype is ctypes.c_int else result or None


def kernels_of(remote: Remote) -> Kernels:
    """The kernels of the library in the other process, with the best variant selected."""
    library = cast("ctypes.CDLL", _Library(remote))
    names = library.ek_variants
    names.restype = ctypes.c_char_p
    variants = tuple(names().decode().split())
    return Kernels(library, variants[0], variants, "remote")
