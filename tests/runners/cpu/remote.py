"""Kernels that run in another process, for `CpuRunner`: those of another architecture, or with a sanitizer in them.

remote.c there calls what it is told to. Here, addresses become addresses of copies over there; what a step may read or
write is copied before and after it. So the very runner is tested, and not a copy of what it does.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, cast

from edgekit.runners.cpu.build import Compiler, compile_kernels, find_compiler
from edgekit.runners.cpu.library import Kernels

__all__ = ["Remote", "compiled", "kernels_of"]

_HERE = Path(__file__).parent
_SOURCES = _HERE.parents[2] / "edgekit" / "runners" / "cpu" / "csrc"


class _Watched(Compiler):
    """Optimizes little, and does not follow variables for a debugger: with what a sanitizer adds, both take minutes."""

    def flags(self) -> list[str]:
        return [*super().flags(), "-O1", "-fno-var-tracking"]


def compiled(compiler: str, folder: Path) -> tuple[Path, Path]:
    """Compile the kernels and remote.c with a compiler and its flags; return the program and the library."""
    found = find_compiler({"EDGEKIT_KERNEL_CC": compiler, "PATH": os.environ["PATH"]})
    if "-fsanitize" in compiler:
        found = _Watched(found.command, found.target)
    built = compile_kernels(found, _SOURCES, folder / "kernels.so")
    assert not built.left_out, built.describe()
    program = folder / "remote"
    subprocess.run([*found.command, "-O1", _HERE / "remote.c", "-o", program, "-ldl"], check=True)
    return program, built.library


class Remote:
    """The other process.

    Args:
        command: Runs remote.c over a library.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._in: Any = self._process.stdin
        self._out: Any = self._process.stdout
        self._said: Any = self._process.stderr

    def close(self) -> str:
        """End it, and return what it had to say."""
        self._in.close()
        said: str = self._said.read().decode()
        self._process.wait(60)
        self._out.close()
        self._said.close()
        return said

    def reserve(self, size: int) -> int:
        """Return the address of so many bytes."""
        self._send(0, max(size, 1))
        return self._word()

    def free(self, address: int) -> None:
        """Free them."""
        self._send(1, address)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes there."""
        self._send(2, address, len(data))
        self._in.write(data)

    def read(self, address: int, size: int) -> bytes:
        """The bytes there."""
        self._send(3, address, size)
        self._in.flush()
        return self._take(size)

    def call(self, name: str, whole: Sequence[int], floats: Sequence[float] = ()) -> int:
        """What a function returns, as 64 bits."""
        self._send(4, len(name))
        self._in.write(name.encode())
        bits = [struct.unpack("<I", struct.pack("<f", value))[0] for value in floats]
        self._send(*whole, *[0] * (12 - len(whole)), *bits, *[0] * (2 - len(bits)))
        return self._word()

    def _send(self, *words: int) -> None:
        self._in.write(struct.pack(f"<{len(words)}Q", *(word & (1 << 64) - 1 for word in words)))

    def _word(self) -> int:
        self._in.flush()
        return int(struct.unpack("<Q", self._take(8))[0])

    def _take(self, size: int) -> bytes:
        data: bytes = self._out.read(size)
        if len(data) != size:
            raise OSError(f"the other process ended: {self._said.read().decode()}")
        return data


class _Mirror:
    """Memory of this process, and its copy over there, which grows as more of it is asked for."""

    def __init__(self, remote: Remote, address: int) -> None:
        self._remote, self._here = remote, address
        self._there = self._size = 0

    def sent(self, size: int) -> int:
        """Copy so many bytes there, and return where they are; what lies behind them belongs to nobody."""
        if size > self._size or not self._there:
            self.free()
            self._there, self._size = self._remote.reserve(size), size
        self._remote.write(self._there, ctypes.string_at(self._here, size))
        return self._there

    def fetch(self, size: int) -> None:
        """Copy so many bytes from there."""
        ctypes.memmove(self._here, self._remote.read(self._there, size), size)

    def free(self) -> None:
        if self._there:
            self._remote.free(self._there)
        self._there = self._size = 0


class _Model:
    """What a step must be told of a model."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.vocab, _, _, _, self.kv_heads, self.head_dim, _, self.positions = sizes
        self.layers: dict[int, tuple[int, float, list[_Mirror]]] = {}

    def cache_bytes(self, slots: int) -> int:
        """Of a layer's keys, or values."""
        return 2 * slots * self.kv_heads * self.positions * self.head_dim

    def row_bytes(self) -> int:
        """Of a position's keys and values."""
        return 2 * 2 * len(self.layers) * self.kv_heads * self.head_dim


class _Library:
    """Looks like the library to `Functions`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._models: dict[int, _Model] = {}
        self.lock = RLock()

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("ek_"):
            raise AttributeError(name)
        return _Function(self, self._remote, name)

    def call_matrix_new(self, call: _Function, *given: Any) -> Any:
        arena, variant, out, width, bits, group, codes, scales, offsets, zero, wide, bias = given
        groups = -(-width // group)
        sizes = (out * groups * group * bits // 8, 4 * out * groups, 4 * out * groups, 4 * out)
        parts = [_Mirror(self._remote, here) if here else None for here in (codes, scales, offsets, bias)]
        codes, scales, offsets, bias = (part and part.sent(size) for part, size in zip(parts, sizes, strict=True))
        made = call.plain(arena, variant, out, width, bits, group, codes, scales, offsets, zero, wide, bias)
        for part in filter(None, parts):
            part.free()
        return made

    def call_model_new(self, call: _Function, variant: bytes, threads: int, *given: Any) -> Any:
        made = call.plain(variant, threads, *given)
        self._models[made] = _Model(given[:8])
        return made

    def call_model_free(self, call: _Function, model: int) -> None:
        call.plain(model)
        for _, _, mirrors in self._models.pop(model).layers.values():
            for mirror in mirrors:
                mirror.free()

    def call_model_norm(self, call: _Function, *given: Any) -> Any:
        *before, size, weights = given
        mirror = _Mirror(self._remote, weights)
        failed = call.plain(*before, size, mirror.sent(4 * size))
        mirror.free()
        return failed

    def call_model_layer(self, _: _Function, *given: Any) -> None:
        model, index, window, scale, *arrays = given
        self._models[model].layers[index] = window, scale, [_Mirror(self._remote, here) for here in arrays]

    def call_step(self, call: _Function, *given: Any) -> Any:
        model, rows, tokens, chunks, places, wanted, which, logits = given
        m = self._models[model]
        parts = [struct.unpack_from("<4i", ctypes.string_at(places, 16 * chunks), 16 * at) for at in range(chunks)]
        slots = max(slot for slot, *_ in parts) + 1
        self._send_layers(model, slots, max(position + count for _, position, _, count in parts))
        arrays = [_Mirror(self._remote, here) for here in (tokens, places, which, logits)]
        sizes = (4 * rows, 16 * chunks, 4 * wanted, 4 * wanted * m.vocab)
        at = [mirror.sent(size) for mirror, size in zip(arrays, sizes, strict=True)]
        failed = call.plain(model, rows, at[0], chunks, at[1], wanted, at[2], at[3])
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
        call.plain(model, slot, start, count, mirror.sent(size))
        mirror.fetch(size)
        mirror.free()

    def call_write_kv(self, call: _Function, *given: int) -> None:
        model, slot, start, count, rows = given
        m = self._models[model]
        self._send_layers(model, slot + 1, 0)
        mirror = _Mirror(self._remote, rows)
        call.plain(model, slot, start, count, mirror.sent(m.row_bytes() * count))
        self._fetch_cache(m, slot + 1)
        mirror.free()

    def _send_layers(self, model: int, slots: int, positions: int) -> None:
        """Copy there what may be read: the cache of the first slots, and the tables up to a position."""
        m = self._models[model]
        turned, cache = 2 * m.head_dim * positions, m.cache_bytes(slots)
        for index, (window, scale, mirrors) in m.layers.items():
            there = [mirror.sent(size) for mirror, size in zip(mirrors, (turned, turned, cache, cache), strict=True)]
            self._remote.call("ek_model_layer", [model, index, window, *there], [scale])

    def _fetch_cache(self, model: _Model, slots: int) -> None:
        for _, _, mirrors in model.layers.values():
            for mirror in mirrors[2:]:
                mirror.fetch(model.cache_bytes(slots))


class _Function:
    """Looks like a function of ctypes."""

    restype: Any = ctypes.c_int
    argtypes: Sequence[Any] = ()

    def __init__(self, library: _Library, remote: Remote, name: str) -> None:
        self._remote, self._name = remote, name
        self._special: Callable[..., Any] | None = getattr(library, name.replace("ek_", "call_"), None)
        self._lock = library.lock

    def __call__(self, *given: Any) -> Any:
        # Matrices are made by several threads at once.
        with self._lock:
            return self.plain(*given) if self._special is None else self._special(self, *given)

    def plain(self, *given: Any) -> Any:
        """Call it with addresses of over there."""
        whole: list[int] = []
        floats: list[float] = []
        texts = []
        for kind, value in zip(self.argtypes, given, strict=True):
            if kind is ctypes.c_float:
                floats.append(value)
            elif kind is ctypes.c_char_p:
                texts.append(self._remote.reserve(len(value) + 1))
                self._remote.write(texts[-1], value + b"\0")
                whole.append(texts[-1])
            else:
                whole.append(int(value or 0))
        result = self._remote.call(self._name, whole, floats)
        for text in texts:
            self._remote.free(text)
        if self.restype is None:
            return None
        if self.restype is ctypes.c_char_p:
            return self._remote.read(result, 64).partition(b"\0")[0]
        return ctypes.c_int(result).value if self.restype is ctypes.c_int else result or None


def kernels_of(remote: Remote) -> Kernels:
    """The kernels of the library over there, the best of them chosen."""
    library = cast("ctypes.CDLL", _Library(remote))
    names = library.ek_variants
    names.restype = ctypes.c_char_p
    variants = tuple(names().decode().split())
    return Kernels(library, variants[0], variants, "remote")
