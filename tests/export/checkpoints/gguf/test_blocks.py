from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize, quantize

from edgekit.export.checkpoints.gguf.blocks import BLOCKS, encoding_name

_HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108]}
_HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "F16": [0]}


def random_blocks(encoding: str, count: int = 500) -> npt.NDArray[np.uint8]:
    """Random bytes, but for scales that are random finite numbers of either sign."""
    rng = np.random.default_rng(BLOCKS[encoding].number)
    blocks = rng.integers(0, 256, (count, BLOCKS[encoding].size), dtype=np.uint8)
    for at in _HALVES.get(encoding, []):
        scales = (rng.standard_normal(count) * 10.0 ** rng.uniform(-6, 3, count)).astype("<f2")
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    return blocks


@pytest.mark.parametrize("encoding", [name for name in BLOCKS if name not in {"F32", "F16"}])
def test_blocks_decode_to_the_reference_librarys_values_bit_for_bit(encoding: str) -> None:
    blocks = random_blocks(encoding)
    with np.errstate(invalid="ignore"):
        expected = dequantize(blocks, gguf.GGMLQuantizationType[encoding])
        found = BLOCKS[encoding].decode(blocks)
    # Codes times scale plus offset may give +0 where the library gives -0.
    np.testing.assert_array_equal(found.ravel(), expected.ravel())


@pytest.mark.parametrize("encoding", ["F32", "F16"])
def test_plain_floats_are_taken_as_they_are(encoding: str) -> None:
    values = np.random.default_rng(0).standard_normal((64, 1)).astype({"F32": "<f4", "F16": "<f2"}[encoding])
    np.testing.assert_array_equal(BLOCKS[encoding].decode(values.view(np.uint8)), values.astype(np.float32))


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0", "Q4_K"])
def test_codes_scales_and_offsets_stay_within_their_bits(encoding: str) -> None:
    block = BLOCKS[encoding]
    assert block.grouped is not None
    part = block.grouped(random_blocks(encoding))
    assert part.codes.shape == (500, block.length)
    assert part.scales.shape == part.offsets.shape == (500, block.length // block.group_size)
    assert part.codes.max() == (1 << block.bits) - 1


@pytest.mark.parametrize("encoding", BLOCKS)
def test_sizes_and_numbers_are_ggmls(encoding: str) -> None:
    kind = gguf.GGMLQuantizationType[encoding]
    assert gguf.GGML_QUANT_SIZES[kind] == (BLOCKS[encoding].length, BLOCKS[encoding].size)
    assert encoding_name(int(kind)) == encoding


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_that_were_quantized_come_back_near(encoding: str) -> None:
    weights = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    stored = quantize(weights, gguf.GGMLQuantizationType[encoding])
    found = BLOCKS[encoding].decode(stored.reshape(-1, BLOCKS[encoding].size)).reshape(weights.shape)
    assert np.abs(found - weights).max() < 0.5
