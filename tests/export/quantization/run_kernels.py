"""Runs every compiled kernel on small fits and prints, as JSON, a hash of its output and how it was compiled.

A program of its own, because a process compiles a kernel or loads it from numba's cache, not both.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core.dispatcher import Dispatcher

import edgekit.export
from edgekit.export.quantization import float16, kernels
from edgekit.export.writers import nibbles

Array = npt.NDArray[Any]


def normal(*shape: int) -> npt.NDArray[np.float32]:
    """Heavy-tailed numbers, always the same of a shape."""
    return (np.random.default_rng(shape).standard_t(4, shape) * 0.03).astype(np.float32)


def outputs() -> Iterator[tuple[str, list[Array]]]:
    """Each kernel's name and the arrays that it wrote, for several sizes and kinds."""
    starts = np.array([1.04, 0.9, 0.76], np.float32)
    scales, offsets = np.abs(normal(200)) + np.float32(0.01), normal(200)
    for size in (32, 64, 128):
        block = normal(200, size)
        weights = np.exp(40 * normal(7, size))
        weights /= weights.sum(axis=1, keepdims=True)
        first, second = np.empty(200, np.float32), np.empty(200, np.float32)
        codes = np.empty(block.shape, np.uint8)
        kernels.group_ranges(block, first, second)
        yield "group_ranges", [first, second]
        for kind in (kernels.SYMMETRIC, kernels.ZERO_POINT, kernels.FLOAT):
            kernels.fit_weighted_lines(block, weights, 4, kind, starts, 2, first, second)
            yield "fit_weighted_lines", [first, second]
            kernels.fit_lines(block, 4, kind, starts, 2, first, second)
            yield "fit_lines", [first, second]
        kernels.nearest_codes(block, 4, scales, offsets, codes)
        yield "nearest_codes", [codes]
        updated, error, factor = normal(size, 200), normal(size, 200), np.triu(normal(size, size))
        kernels.round_with_feedback(updated, error, codes.reshape(size, 200), factor, scales, offsets, 4)
        yield "round_with_feedback", [updated, error, codes]
        rounded = np.empty(block.size, np.float32)
        float16.round_to_float16(block.reshape(-1), rounded)
        yield "round_to_float16", [rounded]
        yield "_to_float16_bits", [float16.to_float16(block)[0]]
        inputs, out = normal(3, size), np.empty((200, 3), np.float32)
        work = np.empty((2, size), np.float32)
        kernels.multiply_rows(codes.reshape(200, size), scales[:, None], offsets[:, None], inputs, work, out)
        yield "multiply_rows", [out]
        packed = np.empty(codes.size // 2, np.uint8)
        nibbles.pack_pairs(codes.reshape(-1), packed)
        yield "pack_pairs", [packed]
        nibbles.unpack_pairs(packed, codes.reshape(-1))
        yield "unpack_pairs", [codes]
        words = codes.reshape(size, 200).view(np.uint64)
        transposed = np.empty((200, size // 16), np.uint64)
        nibbles.pack_transposed(words, 0, np.uint64(0), transposed)
        yield "pack_transposed", [transposed]


def compiled_kernels() -> Iterator[tuple[str, Any]]:
    """The name and the dispatcher of every kernel in the modules that `jit` compiles; helpers are not cached."""
    root = Path(edgekit.export.__path__[0])
    for file in sorted(root.rglob("*.py")):
        if "quantization.jit import" in file.read_text(encoding="utf-8"):
            parts = file.relative_to(root).with_suffix("").parts
            for name, value in vars(importlib.import_module(".".join(("edgekit", "export", *parts)))).items():
                if isinstance(value, Dispatcher) and value.stats.cache_path:
                    yield name, value


def helpers_apart(kernel: Any) -> list[str]:
    """The functions of ours that a kernel compiled in this process calls instead of containing them."""
    (compiled,) = kernel.overloads.values()
    own = compiled.fndesc.mangled_name.removeprefix("_ZN")
    names = [function.name for function in compiled.library.get_defined_functions()]
    # The kernel itself has two wrappers, named after it.
    return [name for name in names if "edgekit" in name and not name.endswith(own)]


def main() -> None:
    """Print `{kernel: {"output": hash, "loaded": from the cache, "apart": helpers that were not inlined}}`."""
    hashes: dict[str, Any] = {}
    for name, arrays in outputs():
        for array in arrays:
            hashes.setdefault(name, hashlib.sha256()).update(array.tobytes())
    facts = {}
    for name, kernel in compiled_kernels():
        loaded = bool(kernel.stats.cache_hits)
        apart = [] if loaded else helpers_apart(kernel)
        facts[name] = {"output": hashes[name].hexdigest(), "loaded": loaded, "apart": apart}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
