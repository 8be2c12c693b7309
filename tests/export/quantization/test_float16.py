from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.export.quantization.float16 import EXACT, ROUNDED, TOO_LARGE, round_to_float16, to_float16


def all_float16() -> np.ndarray:
    values16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return values16[np.isfinite(values16)]


def check(values: np.ndarray, wanted: np.ndarray, how: int) -> None:
    """Conversion and rounding give these float16 values, bit for bit."""
    stored, lost = to_float16(values)
    assert lost == how
    assert np.array_equal(stored.view(np.uint16), wanted.view(np.uint16))
    rounded = np.empty_like(values)
    assert round_to_float16(values, rounded)
    assert np.array_equal(rounded.view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def test_every_float16_is_kept_bit_for_bit() -> None:
    values16 = all_float16()
    check(values16.astype(np.float32), values16, EXACT)


def test_values_between_two_float16_are_rounded_as_numpy_rounds_them() -> None:
    values16 = np.unique(all_float16().astype(np.float32))
    middle = (values16[1:] + values16[:-1]) / 2  # exact in float32
    values = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-9e9))])
    values = np.concatenate([values, np.arange(0, 0x47000000, 997, dtype=np.uint32).view(np.float32)])
    check(values, values.astype(np.float16), ROUNDED)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_any_number_is_converted_as_by_numpy_or_reported_as_too_large(value: float) -> None:
    values = np.array([1.0, value], np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16)
    stored, lost = to_float16(values)
    finite = bool(np.isfinite(wanted).all())
    assert round_to_float16(values, np.empty_like(values)) == finite
    assert (lost != TOO_LARGE) == finite
    if finite:
        assert np.array_equal(stored.view(np.uint16), wanted.view(np.uint16))
        assert (lost == EXACT) == bool((wanted.astype(np.float32) == values).all())


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 3, 4)])
def test_shapes_are_kept_and_views_are_read(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values.flags.writeable = False
    stored, _ = to_float16(values.T)
    assert np.array_equal(stored, values.T.astype(np.float16))
    assert stored.shape == values.T.shape
