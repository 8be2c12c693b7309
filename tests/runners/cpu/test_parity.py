"""The kernels agree with numpy in float64, up to float32 noise, for every shape and every kind of grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription, describe
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.runners.cpu.models import Shape, random_model
from tests.runners.cpu.parity import NOISE, SHAPES, check
from tests.runners.cpu.reference import forward
from tests.variants import VARIANTS, variant

GRIDS = [Grid(bits, group, offset) for bits in (4, 8) for offset in Offset for group in (32, 64)]


@cache
def _exported(name: str, grid: Grid, folder: Path) -> ModelDescription:
    source = variant(name, folder / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, grid))
    (folder / "onnx").mkdir()
    OnnxWriter("onnxruntime")(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return describe(folder / "onnx")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@st.composite
def _shapes(draw: st.DrawFn) -> Shape:
    kv_heads = draw(st.integers(1, 3))
    return Shape(
        vocab_size=draw(st.integers(2, 80)),
        hidden=16 * draw(st.integers(1, 9)),
        intermediate=16 * draw(st.integers(1, 9)),
        heads=kv_heads * draw(st.integers(1, 10)),
        kv_heads=kv_heads,
        head_dim=16 * draw(st.integers(1, 6)),
        layers=draw(st.integers(1, 2)),
        activation=draw(st.sampled_from(["silu", "gelu_tanh"])),
        bits=draw(st.sampled_from([4, 8])),
        group_size=draw(st.sampled_from([16, 32, 64, 128])),
        offsets=draw(st.sampled_from(["symmetric", "zero-point", "float"])),
        fused=draw(st.booleans()),
        biases=draw(st.booleans()),
        head_norms=draw(st.booleans()),
        post_norms=draw(st.booleans()),
        window=draw(st.sampled_from([-1, 1, 2, 15, 16, 17, 30])),
        tied=draw(st.booleans()),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_computes_what_its_graph_says(name: str, kernels: Kernels, files: Path) -> None:
    grid = GRIDS[list(VARIANTS).index(name) % len(GRIDS)]
    model = _exported(name, grid, files / f"{name}-{grid.bits}-{grid.offset.value}-{grid.group_size}")
    check(model, kernels)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.offset.value}-{grid.group_size}")
def test_every_grid_computes_what_its_graph_says(grid: Grid, kernels: Kernels, files: Path) -> None:
    model = _exported("llama-biased", grid, files / f"grid-{grid.bits}-{grid.offset.value}-{grid.group_size}")
    check(model, kernels)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_computes_what_numpy_computes(shape: str, kernels: Kernels) -> None:
    check(random_model(**SHAPES[shape]), kernels)


# Attention is split into spans of 256 positions, which threads share.
@pytest.mark.parametrize("window", [-1, 40, 256, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_over_several_spans_of_positions(window: int, threads: int, kernels: Kernels) -> None:
    model = random_model(positions=700, window=window, kv_heads=1)
    _, errors = check(model, kernels, (254, 1, 1, 1, 255, 1, 1, 80, 1, 5), threads=threads)
    # Single tokens take another code path than prompts, so they are checked separately.
    assert np.median(errors[[254, 255, 256, 512, 513, 594]]) < NOISE


def test_quantizing_activations_costs_little(best: Kernels) -> None:
    model = random_model(layers=4, offsets="float")
    expected, _ = check(model, best)
    exact = forward(model, np.random.default_rng(0).integers(0, model.vocab_size, 40).tolist())
    error = np.sqrt(np.mean((expected.logits - exact) ** 2)) / exact.std()
    assert 1e-3 < error < 0.04


@settings(max_examples=30, deadline=None)
@given(shape=_shapes(), seed=st.integers(0, 99), threads=st.integers(1, 3), which=st.integers(0, 9))
def test_any_shape_computes_what_numpy_computes(
    shape: Shape, seed: int, threads: int, which: int, best: Kernels
) -> None:
    kernels = replace(best, variant=best.variants[which % len(best.variants)])
    check(random_model(shape, seed), kernels, (20, 12, 1), threads=threads)
