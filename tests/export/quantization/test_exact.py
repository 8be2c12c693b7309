from __future__ import annotations

import numpy as np
import pytest

from edgekit.export.quantization.exact import convert_exactly
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset


def tensor(bits: int, group: int, *, zero: int | None = None, rows: int = 8, width: int = 256) -> GroupedTensor:
    """Random codes; with a zero point, or with arbitrary fp16 offsets."""
    rng = np.random.default_rng(bits * group)
    scales = rng.uniform(0.01, 0.02, (rows, width // group)).astype(np.float16).astype(np.float32)
    offsets = rng.uniform(-0.2, 0, scales.shape).astype(np.float16).astype(np.float32)
    return GroupedTensor(
        codes=rng.integers(0, 1 << bits, (rows, width)).astype(np.uint8),
        scales=scales,
        offsets=offsets if zero is None else np.float32(-zero) * scales,
        bits=bits,
    )


def kept(source: GroupedTensor, grid: Grid) -> GroupedTensor:
    found = convert_exactly(source, grid)
    assert found is not None
    assert (found.bits, found.group_size) == (grid.bits, grid.group_size)
    np.testing.assert_array_equal(found.dequantize(), source.dequantize())
    return found


def test_a_tensor_on_the_grid_is_returned_itself() -> None:
    source = tensor(4, 32)
    assert convert_exactly(source, Grid(4, 32, Offset.FLOAT, np.float16)) is source


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("offset", "zero"), [(Offset.FLOAT, None), (Offset.ZERO_POINT, 5), (Offset.SYMMETRIC, 8)])
def test_a_group_of_128_is_split_into_smaller_groups(group: int, offset: Offset, zero: int | None) -> None:
    kept(tensor(4, 128, zero=zero), Grid(4, group, offset, np.float16))


def test_a_group_of_32_does_not_fit_larger_groups() -> None:
    assert convert_exactly(tensor(4, 32), Grid(4, 64, Offset.FLOAT, np.float16)) is None


@pytest.mark.parametrize(("offset", "zero"), [(Offset.FLOAT, None), (Offset.ZERO_POINT, 0), (Offset.SYMMETRIC, 8)])
def test_4_bit_codes_fit_8_bits(offset: Offset, zero: int | None) -> None:
    kept(tensor(4, 32, zero=zero), Grid(8, 32, offset, np.float16))


def test_8_bit_codes_do_not_fit_4_bits() -> None:
    assert convert_exactly(tensor(8, 32), Grid(4, 32, Offset.FLOAT, np.float16)) is None


def test_an_arbitrary_offset_needs_a_float_offset() -> None:
    assert convert_exactly(tensor(4, 32), Grid(4, 32, Offset.ZERO_POINT, np.float16)) is None
    assert convert_exactly(tensor(4, 32), Grid(4, 32, Offset.SYMMETRIC, np.float16)) is None


def test_a_zero_point_off_the_middle_is_symmetric_only_if_the_codes_can_be_shifted() -> None:
    source = tensor(4, 32, zero=7)
    assert convert_exactly(source, Grid(4, 32, Offset.SYMMETRIC, np.float16)) is None
    narrow = GroupedTensor(np.minimum(source.codes, 14), source.scales, source.offsets, bits=4)
    found = kept(narrow, Grid(4, 32, Offset.SYMMETRIC, np.float16))
    np.testing.assert_array_equal(found.codes, narrow.codes + 1)


def test_a_zero_point_outside_the_codes_is_not_representable() -> None:
    assert convert_exactly(tensor(4, 32, zero=16), Grid(4, 32, Offset.ZERO_POINT, np.float16)) is None
    assert convert_exactly(tensor(4, 32, zero=-1), Grid(4, 32, Offset.ZERO_POINT, np.float16)) is None


def test_scales_that_need_float32_do_not_fit_float16() -> None:
    source = tensor(4, 32)
    fine = GroupedTensor(source.codes, source.scales * np.float32(1.0001), source.offsets, bits=4)
    assert convert_exactly(fine, Grid(4, 32, Offset.FLOAT, np.float16)) is None
    kept(fine, Grid(4, 32, Offset.FLOAT, np.float32))


def test_scales_beyond_float16_are_not_representable_and_give_no_warning() -> None:
    source = tensor(4, 32)
    huge = GroupedTensor(source.codes, source.scales * np.float32(1e8), source.offsets, bits=4)
    assert convert_exactly(huge, Grid(4, 32, Offset.FLOAT, np.float16)) is None


def test_a_negative_scale_fits_a_grid_with_zero_points_but_not_a_symmetric_one() -> None:
    source = tensor(4, 32, zero=8)
    flipped = GroupedTensor(source.codes, -source.scales, -source.offsets, bits=4)
    kept(flipped, Grid(4, 32, Offset.ZERO_POINT, np.float16))
    assert convert_exactly(flipped, Grid(4, 32, Offset.SYMMETRIC, np.float16)) is None


@pytest.mark.parametrize("offset", Offset)
def test_a_group_of_zeros_with_a_scale_of_zero_fits_any_grid(offset: Offset) -> None:
    source = tensor(4, 32, zero=8)
    source.scales[2], source.offsets[2] = 0, 0
    found = kept(source, Grid(4, 32, offset, np.float16))
    if offset is not Offset.FLOAT:
        assert (found.scales > 0).all()


def test_a_constant_group_with_a_scale_of_zero_needs_a_float_offset() -> None:
    source = tensor(4, 32, zero=8)
    source.scales[2], source.offsets[2] = 0, 3
    kept(source, Grid(4, 32, Offset.FLOAT, np.float16))
    assert convert_exactly(source, Grid(4, 32, Offset.ZERO_POINT, np.float16)) is None
    assert convert_exactly(source, Grid(4, 32, Offset.SYMMETRIC, np.float16)) is None
