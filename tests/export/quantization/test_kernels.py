from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.kernels import (
    FLOAT,
    SYMMETRIC,
    ZERO_POINT,
    fit_lines,
    fit_weighted_lines,
    group_ranges,
    nearest_codes,
)
from edgekit.export.quantization.lsq import lsq

FloatArray = npt.NDArray[np.float32]
STARTS = np.array([1.04, 0.97, 0.9, 0.83, 0.76], np.float32)


def groups(count: int, size: int) -> FloatArray:
    return (np.random.default_rng(count * size).standard_t(4, (count, size)) * 0.03).astype(np.float32)


def importances(period: int, size: int) -> FloatArray:
    """Weights of inputs of very different size, `[period, size]`; each row sums to one."""
    weights = np.exp(2 * np.random.default_rng(size).standard_normal((period, size)))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def errors(
    block: FloatArray, scales: FloatArray, offsets: FloatArray, weights: FloatArray | None = None, bits: int = 4
) -> npt.NDArray[np.float64]:
    """Squared error of each group, on its best codes, in double precision."""
    x, s, o = block.astype(np.float64), scales.astype(np.float64)[:, None], offsets.astype(np.float64)[:, None]
    codes = np.clip(np.rint((x - o) / s), 0, (1 << bits) - 1)
    error: npt.NDArray[np.float64] = (_of(weights, block) * (codes * s + o - x) ** 2).sum(axis=1)
    return error


def _of(weights: FloatArray | None, block: FloatArray) -> npt.NDArray[np.float64]:
    """The weights of all groups, `[groups, size]`."""
    if weights is None:
        return np.ones(block.shape)
    return np.resize(weights.astype(np.float64), block.shape)


def searched(
    block: FloatArray, kind: int, refinements: int = 2, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    scales, offsets = np.empty(len(block), np.float32), np.empty(len(block), np.float32)
    if weights is None:
        assert fit_lines(block, 4, kind, STARTS, refinements, scales, offsets)
    else:
        assert fit_weighted_lines(block, weights, 4, kind, STARTS, refinements, scales, offsets)
    return scales, offsets


def reference(block: FloatArray, kind: int, weights: FloatArray | None = None) -> npt.NDArray[np.float64]:
    """The same search in plain numpy and double precision: the smallest error over all lines it passes."""
    x = block.astype(np.float64)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    center = (low + high) / 2 if kind == FLOAT else np.zeros_like(low)
    half = (high - low) / 2 if kind == FLOAT else np.maximum(-low, high)
    x = (x - center) / half
    h = _of(weights, block)
    h /= h.sum(axis=1, keepdims=True)
    low, high = np.minimum((low - center) / half, 0), np.maximum((high - center) / half, 0)
    best = np.full((len(x), 1), np.inf)
    line = np.zeros((len(x), 2))
    for step in range(len(STARTS) + 2):
        if step < len(STARTS):
            scale = np.full_like(low, 2 * STARTS[step] / 15)
            zero = np.full_like(low, -0.5 if kind == FLOAT else 0.0)
            if kind == ZERO_POINT:
                scale = (high - low) * STARTS[step] / 15
                zero = np.clip(np.rint(-8 - low * STARTS[step] / scale), -8, 7)
        else:
            scale, zero = line[:, :1].copy(), line[:, 1:].copy()
        codes = np.clip(np.rint(x / scale + zero), -8, 7)
        if kind != SYMMETRIC:
            mean = _sum(h * codes)
            slope = _sum(h * (codes - mean) * x) / _sum(h * (codes - mean) ** 2)
            zero = mean - _sum(h * x) / slope
            if kind == ZERO_POINT:
                zero = np.clip(np.rint(zero), -8, 7)
        scale = _sum(h * (codes - zero) * x) / _sum(h * (codes - zero) ** 2)
        error = _sum(h * (scale * (codes - zero) - x) ** 2)
        line = np.where(error < best, np.concatenate([scale, zero], axis=1), line)
        best = np.minimum(best, error)
    return errors(block, *_stored(line, half, center), weights)


def _sum(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] = values.sum(axis=1, keepdims=True)
    return total


def _stored(line: npt.NDArray[np.float64], half: FloatArray, center: FloatArray) -> tuple[FloatArray, FloatArray]:
    scales = line[:, :1] * half
    offsets = center - (line[:, 1:] + 8) * scales
    return scales[:, 0].astype(np.float32), offsets[:, 0].astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("kind", [SYMMETRIC, ZERO_POINT, FLOAT])
def test_the_compiled_search_leaves_the_error_of_the_same_search_in_double_precision(
    kind: int, size: int, weighted: bool
) -> None:
    block, weights = groups(2000, size), importances(7, size) if weighted else None
    ours, theirs = errors(block, *searched(block, kind, weights=weights), weights), reference(block, kind, weights)
    assert ours.sum() == pytest.approx(theirs.sum(), rel=1e-4)
    assert np.mean(np.abs(ours - theirs) <= 1e-3 * theirs) > 0.995


@pytest.mark.parametrize("kind", [SYMMETRIC, ZERO_POINT, FLOAT])
def test_a_group_gives_the_same_result_at_any_position(kind: int) -> None:
    # Sixteen are searched side by side; 37 leave an incomplete batch.
    block, weights = groups(37, 64), importances(3, 64)
    for each in (None, weights):
        full = searched(block, kind, weights=each)
        for first in (0, 1, 5, 16, 36):
            rolled = None if each is None else np.roll(each, -first, axis=0)
            part = searched(np.ascontiguousarray(block[first:]), kind, weights=rolled)
            np.testing.assert_array_equal(part[0], full[0][first:])
            np.testing.assert_array_equal(part[1], full[1][first:])


@pytest.mark.parametrize("kind", [SYMMETRIC, ZERO_POINT, FLOAT])
def test_weights_lower_the_error_that_they_weigh(kind: int) -> None:
    block, weights = groups(500, 64), importances(5, 64)
    plain, weighted = (errors(block, *searched(block, kind, weights=each), weights) for each in (None, weights))
    assert weighted.sum() < 0.8 * plain.sum()


def test_refining_lowers_the_error() -> None:
    block = groups(500, 64)
    error = [errors(block, *searched(block, FLOAT, refinements)).sum() for refinements in (0, 1, 4)]
    assert error[0] > error[1] > error[2]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (3, 31), (20, 63)])
def test_a_weight_that_is_not_finite_stops_the_work(value: float, position: tuple[int, int]) -> None:
    block = groups(21, 64)
    block[position] = value
    lows, highs = np.empty(21, np.float32), np.empty(21, np.float32)
    assert not group_ranges(block, lows, highs)
    assert not fit_lines(block, 4, FLOAT, STARTS, 2, lows, highs)
    assert not fit_weighted_lines(block, importances(1, 64), 4, FLOAT, STARTS, 2, lows, highs)


def test_ranges_are_those_of_numpy_down_to_zeros_and_subnormals() -> None:
    block = groups(50, 32)
    block[1], block[2] = 0.0, -0.0
    block[3] *= np.float32(1e-43 / 0.03)
    block[4, 0], block[5, 0] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    lows, highs = np.empty(50, np.float32), np.empty(50, np.float32)
    assert group_ranges(block, lows, highs)
    np.testing.assert_array_equal(lows, block.min(axis=1))
    np.testing.assert_array_equal(highs, block.max(axis=1))


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_the_nearest_ones_and_stay_within_their_bits(bits: int) -> None:
    block = groups(64, 128)
    scales = np.full(64, 0.3 / (1 << bits), np.float32)
    offsets = np.linspace(-0.2, 0.0, 64, dtype=np.float32)
    codes = np.empty(block.shape, np.uint8)
    nearest_codes(block, bits, scales, offsets, codes)
    expected = np.clip(np.rint((block - offsets[:, None]) / scales[:, None]), 0, (1 << bits) - 1)
    np.testing.assert_array_equal(codes, expected)
    assert codes.min() == 0
    assert codes.max() == (1 << bits) - 1


def test_rows_quantized_separately_are_the_rows_of_the_full_matrix() -> None:
    weight = groups(90, 320)
    grid = Grid(4, 64, Offset.FLOAT, np.float16)
    full = lsq(weight, grid)
    for start, stop in ((0, 1), (17, 60), (89, 90)):
        part = lsq(weight[start:stop], grid)
        np.testing.assert_array_equal(part.codes, full.codes[start:stop])
        np.testing.assert_array_equal(part.offsets, full.offsets[start:stop])


def run_every_kernel(cache: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.quantization.run_kernels"],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return facts


def test_a_kernel_gives_the_same_bytes_in_the_process_that_compiles_it_and_when_loaded_from_the_cache(
    tmp_path: Path,
) -> None:
    compiled, loaded = run_every_kernel(tmp_path), run_every_kernel(tmp_path)
    assert not any(fact["loaded"] for fact in compiled.values())
    assert all(fact["loaded"] for fact in loaded.values())
    assert [name for name, fact in compiled.items() if fact["output"] != loaded[name]["output"]] == []
    # The cause, which shows on every processor: of a helper that is not inlined there are two compiled copies, its own
    # and the kernel's, and the first that a process loads is called.
    assert [name for name, fact in compiled.items() if fact["apart"]] == []


def test_where_nothing_can_be_cached_kernels_are_compiled_all_the_same() -> None:
    script = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, path: None)
from edgekit.export.quantization.jit import kernel
assert kernel("int64(int64)")(lambda n: n + 1)(41) == 42
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_lines_help_and_catalogue_load_no_compiler() -> None:
    script = """
import sys
from click.testing import CliRunner
from edgekit.cli import main
import edgekit.cli.export
CliRunner().invoke(edgekit.cli.export.models, ["--json"], catch_exceptions=False)
import edgekit.export.pipeline
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
