from __future__ import annotations

import numpy as np
import pytest

from edgekit.export.writers.nibbles import pack_pairs
from edgekit.export.writers.onnx.packing import int4_columns


def test_pairs_have_the_first_code_in_the_low_nibble() -> None:
    codes = np.random.default_rng(0).integers(0, 16, 1002).astype(np.uint8)
    packed = np.empty(501, np.uint8)
    pack_pairs(codes, packed)
    np.testing.assert_array_equal(packed & 15, codes[0::2])
    np.testing.assert_array_equal(packed >> 4, codes[1::2])


# Multiples of 64-bit words use the compiled transposition; other shapes must give the same bytes.
@pytest.mark.parametrize("shape", [(16, 64), (32, 320), (160, 576), (1008, 64), (7, 64), (24, 96), (16, 40), (3, 5)])
def test_columns_are_the_transposed_matrix_as_int4(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(shape[0]).integers(0, 16, shape).astype(np.uint8)
    nibbles = np.concatenate([np.stack([part & 15, part >> 4], axis=1).ravel() for part in int4_columns(codes)])
    signed = (nibbles ^ 8).astype(np.int64)[: codes.size].reshape(shape[::-1])
    np.testing.assert_array_equal(signed, codes.T)
    assert not nibbles[codes.size :].any()
