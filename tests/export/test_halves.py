from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.export.halves import EXACT, ROUNDED, TOO_LARGE, as_halves, round_to_halves


def all_halves() -> np.ndarray:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return halves[np.isfinite(halves)]


def check(values: np.ndarray, wanted: np.ndarray, how: int) -> None:
    """Both ways of rounding give these float16, to the bit."""
    stored, lost = as_halves(values)
    assert lost == how
    assert np.array_equal(stored.view(np.uint16), wanted.view(np.uint16))
    rounded = np.empty_like(values)
    assert round_to_halves(values, rounded)
    assert np.array_equal(rounded.view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def test_every_float16_is_kept_to_the_bit() -> None:
    halves = all_halves()
    check(halves.astype(np.float32), halves, EXACT)


def test_what_lies_between_two_goes_where_numpy_puts_it() -> None:
    halves = np.unique(all_halves().astype(np.float32))
    middle = (halves[1:] + halves[:-1]) / 2  # exact in float32
    values = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-9e9))])
    values = np.concatenate([values, np.arange(0, 0x47000000, 997, dtype=np.uint32).view(np.float32)])
    check(values, values.astype(np.float16), ROUNDED)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_any_number_is_as_numpy_has_it_or_refused(value: float) -> None:
    values = np.array([1.0, value], np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16)
    stored, lost = as_halves(values)
    finite = bool(np.isfinite(wanted).all())
    assert round_to_halves(values, np.empty_like(values)) == finite
    assert (lost != TOO_LARGE) == finite
    if finite:
        assert np.array_equal(stored.view(np.uint16), wanted.view(np.uint16))
        assert (lost == EXACT) == bool((wanted.astype(np.float32) == values).all())


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 3, 4)])
def test_shapes_are_kept_and_views_are_read(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values.flags.writeable = False
    stored, _ = as_halves(values.T)
    assert np.array_equal(stored, values.T.astype(np.float16))
    assert stored.shape == values.T.shape
