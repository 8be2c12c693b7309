"""GPTQ, AWQ and the weighted fit, judged by the error of a layer's outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.quantization.awq import ScaledLayer, awq, input_scales
from edgekit.export.quantization.exact import convert_exactly
from edgekit.export.quantization.gptq import factor_hessian
from edgekit.export.quantization.gptq import gptq as gptq_with_factor
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.rtn import rtn
from edgekit.export.quantization.weighted import weighted_lsq

FloatArray = npt.NDArray[np.float32]
OUT, WIDTH, TOKENS = 48, 256, 800


def gaussian() -> FloatArray:
    return (np.random.default_rng(0).standard_normal((OUT, WIDTH)) * 0.02).astype(np.float32)


def heavy_tailed() -> FloatArray:
    return (np.random.default_rng(1).standard_t(3, (OUT, WIDTH)) * 0.02).astype(np.float32)


def correlated_inputs(width: int = WIDTH, tokens: int = TOKENS) -> FloatArray:
    """Inputs as layers have them: a few common directions, and features of very different size."""
    rng = np.random.default_rng(2)
    common = rng.standard_normal((tokens, width // 8)) @ rng.standard_normal((width // 8, width))
    return ((common + rng.standard_normal((tokens, width))) * np.exp(rng.standard_normal(width))).astype(np.float32)


def moments(inputs: FloatArray) -> FloatArray:
    return np.asarray(inputs.T @ inputs / len(inputs), np.float32)


def sizes(inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean magnitudes and mean squares."""
    return np.abs(inputs).mean(axis=0), np.square(inputs).mean(axis=0)


def gptq(weight: FloatArray, grid: Grid, hessian: FloatArray, damping: float = 0.01) -> GroupedTensor:
    return gptq_with_factor(weight, grid, factor_hessian(hessian, grid.group_size, damping=damping))


def output_error(weight: FloatArray, tensor: GroupedTensor, inputs: FloatArray) -> float:
    return float(np.square(inputs @ (weight - tensor.dequantize()).T).sum(dtype=np.float64))


@pytest.mark.parametrize("weights", [gaussian, heavy_tailed])
@pytest.mark.parametrize("offset", Offset)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_leaves_far_less_output_error_than_recipes_without_data(
    weights: Callable[[], FloatArray], offset: Offset, group_size: int
) -> None:
    weight, inputs, grid = weights(), correlated_inputs(), Grid(4, group_size, offset, np.float16)
    data_free = min(output_error(weight, recipe(weight, grid), inputs) for recipe in (rtn, lsq))
    weighted = output_error(weight, weighted_lsq(weight, grid, np.square(inputs).mean(axis=0)), inputs)
    calibrated = output_error(weight, gptq(weight, grid, moments(inputs)), inputs)
    assert calibrated < 0.25 * data_free
    assert weighted < 0.95 * data_free


def test_gptq_is_better_on_inputs_it_was_not_calibrated_on_too() -> None:
    weight, inputs, grid = gaussian(), correlated_inputs(), Grid(4, 64, Offset.FLOAT, np.float16)
    tensor = gptq(weight, grid, moments(inputs[:600]))
    assert output_error(weight, tensor, inputs[600:]) < 0.5 * output_error(weight, lsq(weight, grid), inputs[600:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", Offset)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_calibrated_recipes_give_only_what_the_grid_can_store(
    bits: int, offset: Offset, dtype: type[np.float16 | np.float32]
) -> None:
    grid, inputs = Grid(bits, 32, offset, dtype), correlated_inputs()
    for tensor in (
        gptq(heavy_tailed(), grid, moments(inputs)),
        weighted_lsq(heavy_tailed(), grid, np.square(inputs).mean(axis=0)),
    ):
        assert tensor.codes.dtype == np.uint8
        assert tensor.codes.max() < 1 << bits
        assert convert_exactly(tensor, grid) is tensor


@pytest.mark.parametrize("offset", Offset)
def test_gptq_keeps_weights_that_lie_on_the_grid(offset: Offset) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (32, 128)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = rng.uniform(0.01, 0.02, (32, 4)).astype(np.float16).astype(np.float32)
    points = {Offset.SYMMETRIC: np.full((32, 4), 8), Offset.FLOAT: np.full((32, 4), 6.5)}
    offsets = (-points.get(offset, rng.integers(3, 12, (32, 4))) * scales).astype(np.float32)
    if offset is Offset.FLOAT:
        offsets = offsets.astype(np.float16).astype(np.float32)
    exact = GroupedTensor(codes, scales, offsets, bits=4)
    found = gptq(exact.dequantize(), Grid(4, 32, offset, np.float16), moments(correlated_inputs(128)))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.dequantize(), exact.dequantize(), atol=3e-4)


def test_uncorrelated_inputs_of_one_size_leave_gptq_nothing_to_feed_back() -> None:
    weight, grid = gaussian(), Grid(4, 64, Offset.FLOAT, np.float16)
    plain = weighted_lsq(weight, grid, np.ones(WIDTH, np.float32))
    found = gptq(weight, grid, np.eye(WIDTH, dtype=np.float32))
    np.testing.assert_allclose(found.dequantize(), plain.dequantize(), atol=1e-6)


def test_gptq_minimises_column_by_column_what_an_exhaustive_feedback_would() -> None:
    """Two inputs that are always equal: the second compensates the rounding error of the first."""
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((64, 32)) * 0.02).astype(np.float32)
    inputs = np.repeat(rng.standard_normal((400, 16)).astype(np.float32), 2, axis=1)
    tensor = gptq(weight, Grid(4, 32, Offset.FLOAT, np.float16), moments(inputs), damping=1e-4)
    pairs = (tensor.dequantize() - weight).reshape(64, 16, 2)
    # Each pair's sum is right to half a step, though neither of the two need be.
    assert (np.abs(pairs.sum(axis=2)) <= 0.55 * tensor.scales).mean() > 0.98
    assert (np.abs(pairs).max(axis=2) > 0.55 * tensor.scales).any()


def test_gptq_does_not_mind_inputs_that_were_never_active_or_are_few() -> None:
    weight, grid = gaussian(), Grid(4, 64, Offset.FLOAT, np.float16)
    inputs = correlated_inputs()[:20]
    inputs[:, 64:160] = 0
    tensor = gptq(weight, grid, moments(inputs))
    step = np.repeat(tensor.scales, 64, axis=1)
    # Weights whose input is silent are still near what they were: another text may use them.
    assert (np.abs(tensor.dequantize() - weight) <= 0.51 * step)[:, 64:160].mean() > 0.95
    np.testing.assert_allclose(
        gptq(weight, grid, np.zeros((WIDTH, WIDTH), np.float32)).dequantize(), lsq(weight, grid).dequantize(), atol=0.02
    )


def test_the_factor_gives_the_second_moments_back() -> None:
    hessian = moments(correlated_inputs(600))
    factored = factor_hessian(hessian, 8, damping=1e-6)
    upper = np.triu(factored.upper, 1).astype(np.float64) + np.eye(600)
    product = (upper * factored.cost) @ upper.T
    expected = hessian[np.ix_(factored.order, factored.order)]
    assert np.abs(product - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(np.sort(factored.order), np.arange(600))
    assert (np.diff(factored.order.reshape(-1, 8) // 8, axis=1) == 0).all()


def test_gptq_corrects_the_error_of_earlier_layers() -> None:
    """The inputs have drifted: the matrix must give the outputs of the original inputs."""
    weight, grid = gaussian(), Grid(4, 64, Offset.FLOAT, np.float16)
    before = correlated_inputs()
    change = np.eye(WIDTH) + np.random.default_rng(8).standard_normal((WIDTH, WIDTH)) * 0.01
    after = before @ change.astype(np.float32)
    factored = factor_hessian(moments(after), 64)
    drift = weight @ ((before - after).T @ after) / np.float32(len(after))

    def error(tensor: GroupedTensor) -> float:
        return float(np.square(after @ tensor.dequantize().T - before @ weight.T).sum(dtype=np.float64))

    plain, corrected = (gptq_with_factor(weight, grid, factored, drift=given) for given in (None, drift))
    assert error(corrected) < 0.3 * error(plain)


@pytest.mark.parametrize(
    ("shape", "hessian", "words"),
    [
        ((8, 100), np.eye(100), "do not divide"),
        ((8, 128), np.eye(64), "second moments"),
        ((8, 128), np.full((128, 128), np.nan), "not finite"),
        ((8, 128), -np.eye(128), "not positive"),
    ],
)
def test_inputs_that_gptq_cannot_use_are_refused(
    shape: tuple[int, int], hessian: npt.NDArray[np.float64], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        gptq(np.ones(shape, np.float32), Grid(4, 32, Offset.FLOAT), hessian.astype(np.float32))


@pytest.mark.parametrize("offset", Offset)
@pytest.mark.parametrize("weights", [gaussian, heavy_tailed])
@pytest.mark.parametrize("recipe", [rtn, lsq])
def test_awq_scales_lower_the_output_error_of_any_fit(
    offset: Offset, weights: Callable[[], FloatArray], recipe: Callable[[FloatArray, Grid], GroupedTensor]
) -> None:
    weight, inputs, grid = weights(), correlated_inputs(tokens=300), Grid(4, 32, offset, np.float16)
    scales = input_scales([weight], *sizes(inputs), lambda w, _: recipe(w, grid))
    tensor = recipe(weight * scales, grid)
    scaled = float(np.square(inputs @ (weight - tensor.dequantize() / scales).T).sum(dtype=np.float64))
    assert scaled < 0.8 * output_error(weight, recipe(weight, grid), inputs)


def test_awq_does_not_scale_what_it_cannot_improve() -> None:
    weight, grid = gaussian(), Grid(8, 32, Offset.FLOAT, np.float32)
    on_grid = lsq(weight, Grid(4, 32, Offset.FLOAT, np.float32)).dequantize()
    even = np.ones((50, WIDTH), np.float32)
    silent = np.zeros((50, WIDTH), np.float32)
    for inputs in (even, silent):
        np.testing.assert_array_equal(input_scales([on_grid], *sizes(inputs), lambda w, _: rtn(w, grid)), 1)


@pytest.mark.parametrize("shared_kv_heads", [True, False])
def test_an_awq_layer_computes_what_the_layer_did(shared_kv_heads: bool) -> None:
    rng = np.random.default_rng(6)
    hidden, inner, kv = 64, 96, 32 if shared_kv_heads else 64
    shapes = {
        "q": (64, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, 64),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }  # fmt: skip
    layer = ScaledLayer(
        {name: (rng.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in shapes.items()},
        {name: rng.uniform(0.5, 2, hidden).astype(np.float32) for name in ("attention", "mlp")},
        {"v": rng.standard_normal(kv).astype(np.float32), "up": rng.standard_normal(inner).astype(np.float32)},
    )
    widths = {"attention": hidden, "o": 64, "mlp": hidden, "down": inner}
    inputs = {site: correlated_inputs(width, 100) for site, width in widths.items()}
    grid = Grid(4, 32, Offset.SYMMETRIC, np.float16)
    magnitudes, squares = ({site: sizes(x)[which] for site, x in inputs.items()} for which in (0, 1))
    scaled = awq(layer, magnitudes, squares, lambda w, h: weighted_lsq(w, grid, h), shared_kv_heads=shared_kv_heads)

    def outputs(some: ScaledLayer) -> list[FloatArray]:
        x = np.random.default_rng(7).standard_normal((10, hidden)).astype(np.float32)
        m, b = some.matrices, some.biases
        first, second = x * some.norms["attention"], x * some.norms["mlp"]
        value = first @ m["v"].T + b["v"]
        mixed = np.concatenate([value, value], axis=1) if shared_kv_heads else value
        gate = np.tanh(second @ m["gate"].T)
        up = second @ m["up"].T + b["up"]
        return [first @ m["q"].T, first @ m["k"].T, mixed @ m["o"].T, (gate * up) @ m["down"].T]

    for before, after in zip(outputs(layer), outputs(scaled), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    # And something was scaled: the inputs differ in size.
    assert np.ptp(scaled.norms["attention"] / layer.norms["attention"]) > 0.1
    assert np.array_equal(scaled.matrices["o"], layer.matrices["o"]) == shared_kv_heads
