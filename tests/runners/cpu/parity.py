"""Compares a runner's logits and KV cache with `reference.rounded_forward`; shapes to test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription
from edgekit.runners.cpu.runner import CpuRunner
from tests.runners.cpu.reference import Pass, rounded_forward

__all__ = ["NOISE", "SHAPES", "check"]

# Float noise can flip the rounding of an activation to the neighbouring code. The error of a row without a flip is at
# most NOISE, of others FLIPPED: one code step (1/127 of the group's maximum) and its consequences.
NOISE, FLIPPED = 1e-5, 0.3
# Minimum share of rows without a flip.
UNFLIPPED = 0.7
HALF = 2.0**-11

SHAPES: dict[str, dict[str, Any]] = {
    **{
        f"{bits}-{offsets}": {"bits": bits, "offsets": offsets} for bits in (4, 8) for offsets in ("symmetric", "float")
    },
    "8-zero-point-128": {"bits": 8, "group_size": 128, "hidden": 128, "intermediate": 256},
    "4-symmetric-128": {"offsets": "symmetric", "group_size": 128, "hidden": 128, "intermediate": 256},
    "groups of 16": {"group_size": 16, "offsets": "float"},
    "groups that are not full": {"hidden": 80, "intermediate": 112, "group_size": 64},
    "8-bit groups that are not full": {"hidden": 80, "intermediate": 112, "bits": 8, "offsets": "float"},
    "wider than a group is long": {"hidden": 48, "intermediate": 16, "group_size": 128},
    "factors below float16": {"factor": 1e-6, "offsets": "float"},
    "factors above float16": {"factor": 1e6, "bits": 8},
    "symmetric below float16": {"factor": 1e-6, "offsets": "symmetric"},
    "several kinds of groups": {"fused": False, "mixed": True, "hidden": 256, "offsets": "float"},
    "vocabulary of no tiles": {"vocab_size": 101, "tied": True},
    "vocabulary of less than a tile": {"vocab_size": 3},
    "one head": {"heads": 1, "kv_heads": 1, "head_dim": 64},
    "multi-head": {"heads": 3, "kv_heads": 3, "head_dim": 32},
    "multi-query": {"heads": 5, "kv_heads": 1, "head_dim": 48},
    "groups of 3 heads": {"heads": 6, "kv_heads": 2},
    "groups of 6 heads": {"heads": 12, "kv_heads": 2, "fused": False, "biases": True},
    "groups of 7 heads": {"heads": 14, "kv_heads": 2, "head_dim": 64},
    "groups of 9 heads": {"heads": 9, "kv_heads": 1, "head_dim": 80},
    "groups of 17 heads": {"heads": 17, "kv_heads": 1, "head_dim": 32},
    "heads of 96": {"heads": 2, "kv_heads": 1, "head_dim": 96},
    "heads of 112": {"heads": 2, "kv_heads": 2, "head_dim": 112},
    "heads of 128": {"heads": 2, "kv_heads": 1, "head_dim": 128, "head_norms": True},
    "heads of 256": {"heads": 2, "kv_heads": 1, "head_dim": 256, "activation": "gelu_tanh", "post_norms": True},
    **{
        f"columns of {bits}-{offsets}-{size}": {
            "by_columns": True,
            "bits": bits,
            "offsets": offsets,
            "group_size": size,
            "hidden": 128,
            "intermediate": 256,
            "head_dim": 32,
            "fused": False,
        }
        for bits, offsets, size in (
            (4, "symmetric", 32),
            (4, "symmetric", 64),
            (4, "float", 128),
            (8, "symmetric", 128),
            (8, "float", 32),
        )
    },
    "columns of an odd number": {
        "by_columns": True,
        "vocab_size": 101,
        "offsets": "symmetric",
        "intermediate": 64,
        "biases": True,
    },
    "columns of 8 bits of an odd number": {"by_columns": True, "vocab_size": 37, "bits": 8, "intermediate": 64},
    "half of a head rotated": {"rotary_dim": 8},
    "three quarters of a normed head rotated": {"rotary_dim": 24, "head_dim": 32, "head_norms": True},
    "all at once": {
        "activation": "gelu_tanh",
        "biases": True,
        "embedding_scale": 3.0,
        "head_norms": True,
        "fused": False,
        "layers": 3,
        "offsets": "float",
        "post_norms": True,
        "tied": True,
        "window": 7,
    },
}


def check(
    model: ModelDescription,
    kernels: Kernels,
    chunk_sizes: Sequence[int] = (31, 5, 1, 1, 1, 1),
    *,
    threads: int = 1,
    seed: int = 0,
) -> tuple[Pass, npt.NDArray[np.float64]]:
    """Run random tokens in chunks, and compare logits and KV cache with the reference.

    Returns:
        The expected results, and the maximum error of each token's logits in standard deviations of the logits.
    """
    length = sum(chunk_sizes)
    tokens = np.random.default_rng(seed).integers(0, model.vocab_size, length).tolist()
    runner = CpuRunner(model, kernels, threads=threads, max_chunk=length)
    logits, done = [], 0
    for count in chunk_sizes:
        logits.append(runner.run([Chunk(0, tokens[done : done + count], "all")])[0].copy())
        done += count
    cache = np.frombuffer(runner.read_kv(0, 0, length), np.float16)
    runner.close()
    cache = cache.reshape(2 * len(model.layers), model.kv_heads, length, model.head_dim)
    expected = rounded_forward(model, tokens, cache)
    errors = np.abs(np.concatenate(logits) - expected.logits).max(-1) / expected.logits.std()
    assert np.quantile(errors, UNFLIPPED) < NOISE, errors
    assert errors.max() < FLIPPED, errors
    # Stored numbers are the nearest float16; numbers near the middle between two of them may go either way.
    beyond = np.abs(cache - expected.cache) - HALF * np.abs(expected.cache)
    assert np.quantile(beyond.max((0, 1, 3)), UNFLIPPED) < NOISE
    assert beyond.max() < FLIPPED
    return expected, errors
