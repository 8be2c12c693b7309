from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgekit.errors import ConfigError, ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.quantization.repack import repack
from edgekit.export.recipes.recipe import recipe_for
from edgekit.target import load_target

LINEAR = Linear("model.layers.0.mlp.up_proj", 256, 64)


def floats(seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.05, (64, 256)).astype(np.float32)


def q4_1(scale_dtype: type = np.float16) -> GroupedTensor:
    """4-bit codes with any offset per group of 32, as GGUF's Q4_1 holds them."""
    random = np.random.default_rng(1)
    scales = random.uniform(0.01, 0.02, (64, 8)).astype(scale_dtype).astype(np.float32)
    offsets = random.uniform(-0.2, 0.0, (64, 8)).astype(scale_dtype).astype(np.float32)
    return GroupedTensor(random.integers(0, 16, (64, 256), dtype=np.uint8), scales, offsets, 4)


@pytest.mark.parametrize("target", ["m2", "orin", "cpu"])
def test_a_4_bit_checkpoint_is_carried_over_without_change_where_the_target_holds_it(target: str) -> None:
    stored = q4_1()
    tensor, what = recipe_for(load_target(target), "auto", None).apply(LINEAR, stored, "Q4_1")
    assert what == "exact 4-bit, group 32"
    assert isinstance(tensor, GroupedTensor)
    assert np.array_equal(tensor.dequantize(), stored.dequantize())


def test_scales_wider_than_the_target_stores_are_rounded_and_the_codes_kept() -> None:
    stored = q4_1(np.float32)
    tensor, what = recipe_for(load_target("m2"), "auto", None).apply(LINEAR, stored, "Q4_K")
    assert what == "4-bit codes kept, group 32"
    assert isinstance(tensor, GroupedTensor)
    assert np.array_equal(tensor.codes, stored.codes)
    assert np.allclose(tensor.scales, stored.scales, rtol=2**-11, atol=0)
    assert np.array_equal(tensor.scales, tensor.scales.astype(np.float16).astype(np.float32))


def test_scales_beyond_float16_are_not_repacked() -> None:
    stored = q4_1()
    huge = GroupedTensor(stored.codes, stored.scales * np.float32(1e8), stored.offsets, 4)
    recipe = recipe_for(load_target("m2"), "auto", None)
    assert all(repack(huge, grid) is None for grid in recipe._grids(huge))


@pytest.mark.parametrize(("target", "group"), [("cpu", 32), ("m2", 64), ("orin", 128)])
def test_floating_point_weights_get_4_bits_in_the_targets_group_size(target: str, group: int) -> None:
    tensor, what = recipe_for(load_target(target), "auto", None).apply(LINEAR, floats(), "BF16")
    assert what == f"lsq 4-bit, group {group}"
    assert isinstance(tensor, GroupedTensor)
    assert (tensor.bits, tensor.group_size) == (4, group)
    error = tensor.dequantize() - floats()
    assert (error**2).mean() < 0.02 * (floats() ** 2).mean()


def test_quantized_weights_whose_codes_cannot_be_kept_get_8_bits() -> None:
    tensor, what = recipe_for(load_target("m2"), "auto", None).apply(LINEAR, floats(), "Q6_K")
    assert what == "8-bit, group 128"
    assert isinstance(tensor, GroupedTensor)
    assert tensor.bits == 8


def test_8_bits_for_tensorrt_have_the_groups_of_the_4_bits_beside_them() -> None:
    """It multiplies by all matrices of one input at once, and expands them if their groups differ."""
    for encoding, group in (("Q6_K", 32), ("Q5_0", 32), ("GPTQ", 128)):
        _, what = recipe_for(load_target("orin"), "auto", None).apply(LINEAR, floats(), encoding)
        assert what == f"8-bit, group {group}"
    mixed = recipe_for(load_target("orin"), "lsq", 64)
    assert mixed.grid(LINEAR, 8).group_size == mixed.grid(LINEAR, 4).group_size == 64


def test_none_keeps_floating_point() -> None:
    tensor, what = recipe_for(load_target("cpu"), "none", None).apply(LINEAR, floats(), "F32")
    assert what == "floating point"
    assert np.array_equal(np.asarray(tensor), floats())


def test_inputs_that_no_group_size_divides_are_reported_with_a_hint() -> None:
    odd = Linear("model.layers.0.mlp.down_proj", 100, 64)
    with pytest.raises(ExportError, match="down_proj") as caught:
        recipe_for(load_target("orin"), "lsq", None).apply(odd, np.zeros((64, 100), np.float32), "F16")
    assert "`group_size`" in (caught.value.hint or "")


def test_a_group_size_the_target_does_not_support_is_refused() -> None:
    with pytest.raises(ConfigError, match="group size 48") as caught:
        recipe_for(load_target("orin"), "auto", 48)
    assert "128" in (caught.value.hint or "")


def test_the_summary_counts_the_treatments() -> None:
    summary = recipe_for(load_target("cpu"), "auto", None).summary(Counter({"a": 2, "b": 1}))
    assert summary == {"method": "auto", "summary": "a (2), b (1)", "matrices": {"a": 2, "b": 1}}
