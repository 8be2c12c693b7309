from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.rtn import rtn

Recipe = Callable[[npt.NDArray[np.float32], Grid], GroupedTensor]
GRIDS = [
    Grid(bits, group, offset, dtype)
    for bits, group, offset, dtype in itertools.product((4, 8), (32, 128), Offset, (np.float16, np.float32))
]


def gaussian(rows: int = 64, width: int = 512) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((rows, width)) * 0.02).astype(np.float32)


def heavy_tailed(rows: int = 64, width: int = 512) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(1).standard_t(4, (rows, width)) * 0.02).astype(np.float32)


def mean_square_error(recipe: Recipe, weight: npt.NDArray[np.float32], grid: Grid) -> float:
    return float(np.mean((recipe(weight, grid).dequantize() - weight) ** 2))


def name(grid: Grid) -> str:
    return f"{grid.bits}-{grid.group_size}-{grid.offset.value}-{grid.scale_dtype.__name__}"


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_a_recipe_gives_only_what_the_grid_can_store(recipe: Recipe, grid: Grid) -> None:
    tensor = recipe(heavy_tailed(), grid)
    assert tensor.bits == grid.bits
    assert tensor.group_size == grid.group_size
    assert tensor.codes.dtype == np.uint8
    assert tensor.codes.max() < 1 << grid.bits
    assert (tensor.scales > 0).all()
    np.testing.assert_array_equal(tensor.scales.astype(grid.scale_dtype), tensor.scales)
    if grid.offset is Offset.FLOAT:
        np.testing.assert_array_equal(tensor.offsets.astype(grid.scale_dtype), tensor.offsets)
        return
    zero = np.rint(-tensor.offsets / tensor.scales)
    np.testing.assert_array_equal(-zero * tensor.scales, tensor.offsets)
    assert zero.min() >= 0
    assert zero.max() < 1 << grid.bits
    if grid.offset is Offset.SYMMETRIC:
        assert (zero == 1 << (grid.bits - 1)).all()


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_no_other_code_would_be_nearer_to_the_weight(recipe: Recipe, grid: Grid) -> None:
    weight = heavy_tailed(8)
    tensor = recipe(weight, grid)
    error = np.abs(tensor.dequantize() - weight)
    step = np.repeat(tensor.scales, grid.group_size, axis=1)
    # Where a neighbouring code exists on the side of the weight, the error is at most half a step.
    above = weight > tensor.dequantize()
    clipped = np.where(above, tensor.codes == (1 << grid.bits) - 1, tensor.codes == 0)
    assert (error <= step * 0.5001 + 1e-7)[~clipped].all()
    assert (~clipped).mean() > 0.9


@pytest.mark.parametrize("weights", [gaussian, heavy_tailed])
@pytest.mark.parametrize(
    ("offset", "max_ratio"), [(Offset.SYMMETRIC, 0.93), (Offset.ZERO_POINT, 0.95), (Offset.FLOAT, 0.88)]
)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_lsq_leaves_less_4_bit_error_than_rtn(
    weights: Callable[[], npt.NDArray[np.float32]], offset: Offset, max_ratio: float, group_size: int
) -> None:
    grid = Grid(4, group_size, offset, np.float16)
    assert mean_square_error(lsq, weights(), grid) < max_ratio * mean_square_error(rtn, weights(), grid)


@pytest.mark.parametrize("offset", Offset)
def test_lsq_leaves_less_8_bit_error_than_rtn(offset: Offset) -> None:
    grid = Grid(8, 64, offset, np.float16)
    assert mean_square_error(lsq, gaussian(), grid) < mean_square_error(rtn, gaussian(), grid)


def test_lsq_finds_weights_that_lie_on_a_grid() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (32, 128)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = rng.uniform(0.01, 0.02, (32, 4)).astype(np.float16).astype(np.float32)
    offsets = rng.uniform(-0.2, -0.1, (32, 4)).astype(np.float16).astype(np.float32)
    tensor = GroupedTensor(codes, scales, offsets, bits=4)
    found = lsq(tensor.dequantize(), Grid(4, 32, Offset.FLOAT, np.float16))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.dequantize(), tensor.dequantize(), atol=3e-4)


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_zeros_stay_zeros(recipe: Recipe, grid: Grid) -> None:
    weight = gaussian(4)
    weight[1] = 0
    np.testing.assert_array_equal(recipe(weight, grid).dequantize()[1], 0)


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("grid", GRIDS, ids=name)
@pytest.mark.parametrize("value", [0.37, -0.37, 1e-3])
def test_a_constant_group_keeps_its_value(recipe: Recipe, grid: Grid, value: float) -> None:
    weight = np.full((2, 128), value, dtype=np.float32)
    # One fp16 step of the value, or the scale's own coarseness for the smallest values.
    np.testing.assert_allclose(recipe(weight, grid).dequantize(), weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("offset", Offset)
@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e-7, 3e4])
def test_extreme_magnitudes_give_finite_weights_without_a_warning(
    recipe: Recipe, offset: Offset, magnitude: float
) -> None:
    weight = (gaussian(4) / np.abs(gaussian(4)).max() * magnitude).astype(np.float32)
    values = recipe(weight, Grid(4, 32, offset, np.float16)).dequantize()
    assert np.isfinite(values).all()
    assert np.abs(values - weight).max() <= magnitude / 6 + 5e-7


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_a_weight_that_is_not_finite_is_named(recipe: Recipe, value: float, word: str) -> None:
    # Large enough that threads are used: their errors must arrive.
    weight = np.zeros((2048, 2048), dtype=np.float32)
    weight[2000, 5] = value
    with pytest.raises(ExportError, match=word):
        recipe(weight, Grid(4, 32, Offset.FLOAT, np.float16))


@pytest.mark.parametrize("recipe", [rtn, lsq])
@pytest.mark.parametrize("offset", Offset)
def test_weights_too_large_for_float16_scales_are_refused(recipe: Recipe, offset: Offset) -> None:
    weight = np.full((1, 32), 1e7, dtype=np.float32)
    weight[0, :3] = (-1e7, 0, 3e6)
    with pytest.raises(ExportError, match="too large for float16"):
        recipe(weight, Grid(4, 32, offset, np.float16))


@pytest.mark.parametrize("recipe", [rtn, lsq])
def test_a_width_that_does_not_divide_into_groups_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ExportError, match="576 input features do not divide into groups of 128"):
        recipe(np.zeros((2, 576), dtype=np.float32), Grid(4, 128, Offset.FLOAT))


@pytest.mark.parametrize("recipe", [rtn, lsq])
def test_threads_and_block_borders_do_not_change_a_row(recipe: Recipe) -> None:
    weight = heavy_tailed(2100, 2048)
    grid = Grid(4, 64, Offset.FLOAT, np.float16)
    full, part = recipe(weight, grid), recipe(weight[2000:2010], grid)
    np.testing.assert_array_equal(full.codes[2000:2010], part.codes)
    np.testing.assert_array_equal(full.scales[2000:2010], part.scales)


@pytest.mark.parametrize("recipe", [rtn, lsq])
def test_an_array_that_may_not_be_written_to_gives_the_same(recipe: Recipe) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    grid = Grid(4, 32, Offset.FLOAT, np.float16)
    expected = recipe(weight, grid)
    weight.setflags(write=False)
    found = recipe(weight, grid)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)
