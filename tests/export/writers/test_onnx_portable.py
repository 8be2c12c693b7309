from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk
from edgekit.runners.masks import Masks
from edgekit.runners.portable import PortableRunner
from edgekit.runners.session import open_session
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
Dtype = Literal["float16", "float32"]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 37)]
EVERY = pytest.mark.parametrize("name", VARIANTS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16"])

# FP16 has 11 bits: logits of size 4 carry a rounding of about 2e-3 for each of some ten operations on the way.
FP16 = 3e-2


def write(source: Path, folder: Path, weights: TensorWeights, dtype: Dtype = "float16") -> None:
    folder.mkdir(exist_ok=True)
    OnnxWriter("portable", dtype=dtype)(tiny_decoder(source), weights, folder, lambda _: None)


def in_chunks(runner: PortableRunner, tokens: list[int], chunks: list[int]) -> FloatArray:
    """The logits of a prompt that runs in chunks."""
    got, done = [], 0
    for count in chunks:
        got.append(runner.run([Chunk(0, tokens[done : done + count], "all")])[0])
        done += count
    return np.concatenate(got)


@EVERY
@DTYPES
def test_float_weights_give_the_references_logits(tmp_path: Path, name: str, dtype: Dtype) -> None:
    source = variant(name, tmp_path / "hf")
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors), dtype)
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    atol = FP16 if dtype == "float16" else 2e-3
    np.testing.assert_allclose(PortableRunner.logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=atol)


@EVERY
def test_int4_weights_give_the_logits_of_the_dequantized_model_at_once_in_chunks_and_token_by_token(
    tmp_path: Path, name: str
) -> None:
    source = variant(name, tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, Offset.SYMMETRIC, np.float16)))
    write(source, tmp_path / "onnx", weights)
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    runner = PortableRunner(tmp_path / "onnx", threads=1)
    for chunks in ([37], [1] * 37, [20, 1, 1, 15]):
        runner.truncate(0, 0)
        np.testing.assert_allclose(in_chunks(runner, TOKENS, chunks), expected, atol=FP16)


@pytest.mark.parametrize("name", ["qwen2-tied", "llama"])
@pytest.mark.parametrize(
    "grid",
    [Grid(bits, 32, offset, np.float16) for bits in (4, 8) for offset in Offset],
    ids=lambda grid: f"{grid.bits}-{grid.offset.value}",
)
@DTYPES
def test_every_grid_gives_the_logits_of_the_dequantized_model(
    tmp_path: Path, name: str, grid: Grid, dtype: Dtype
) -> None:
    source = variant(name, tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, grid))
    write(source, tmp_path / "onnx", weights, dtype)
    got = PortableRunner.logits(tmp_path / "onnx", TOKENS, threads=1)
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(got, expected, atol=FP16 if dtype == "float16" else 2e-3)
    if grid.bits == 4:
        assert np.abs(got - forward(decoder, weights.tensors.__getitem__, TOKENS)).max() > 2 * FP16


def test_negative_and_zero_scales_are_stored_as_positive_ones_for_tensorrt(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    decoder = tiny_decoder(source)

    def q4_0(_: object, weight: FloatArray) -> GroupedTensor:
        """GGUF's Q4_0: the largest magnitude of a group becomes code 0, whatever its sign."""
        groups = weight.reshape(weight.shape[0], -1, 32)
        peak = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
        scales = (-peak / 8).astype(np.float16).astype(np.float32)
        scales[0, 0] = 0
        codes = np.clip(np.rint(groups / np.where(scales == 0, 1, scales)[..., None]) + 8, 0, 15)
        return GroupedTensor(codes.astype(np.uint8).reshape(weight.shape), scales, -8 * scales, 4)

    weights = TensorWeights(tiny_tensors(source), q4_0)
    write(source, tmp_path / "onnx", weights, "float32")
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    scales = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("proj.weight.scales")]
    assert len(scales) == 21
    assert all((values > 0).all() for values in scales)
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(PortableRunner.logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=2e-3)


@DTYPES
def test_tokens_far_beyond_the_trained_length_look_back_to_the_first_ones(tmp_path: Path, dtype: Dtype) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    source = variant("qwen2-yarn", tmp_path / "hf", rope_scaling=yarn, max_position=32_768)
    decoder, tensors = tiny_decoder(source), tiny_tensors(source)
    assert decoder.max_position == 131_072
    write(source, tmp_path / "onnx", TensorWeights(tensors), dtype)
    # Twenty tokens at the start, ten behind the trained length and seven at the very end.
    gaps = np.repeat(np.array([0, 40_000 - 20, 131_072 - 37]), (20, 10, 7))
    feeds: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": np.array([TOKENS]),
        "position_ids": (gaps + np.arange(37))[None],
        "logits_index": np.arange(37),
        **Masks(full=True, window=None, dtype=np.dtype(dtype)).step(0, 37, np.arange(37)),
    }
    for layer in decoder.layers:
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer.index}.{part}"] = np.zeros((1, 2, 0, 8, 32), dtype)
    got = open_session(tmp_path / "onnx", "portable", threads=1).run(["logits"], feeds)[0][0]
    expected = forward(decoder, tensors.__getitem__, TOKENS, gaps)
    np.testing.assert_allclose(got, expected, atol=FP16 if dtype == "float16" else 2e-3)
    assert np.abs(got - forward(decoder, tensors.__getitem__, TOKENS)).max() > 10 * FP16


@pytest.mark.parametrize(
    ("name", "window", "masks"),
    [
        ("qwen2", None, {"attention_mask"}),
        ("mistral-window", "12", {"window_mask"}),
        ("gemma3_text", "12", {"attention_mask", "window_mask"}),
    ],
)
def test_a_graph_has_the_mask_inputs_that_its_layers_read(
    tmp_path: Path, name: str, window: str | None, masks: set[str]
) -> None:
    source = variant(name, tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    assert {prop.key: prop.value for prop in model.metadata_props}.get("edgekit.window") == window
    assert {value.name for value in model.graph.input if value.name.endswith("_mask")} == masks


def test_a_window_as_long_as_the_context_needs_no_mask_of_its_own(tmp_path: Path) -> None:
    source = variant("mistral-window", tmp_path / "hf", sliding_window=256)
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    assert "window_mask" not in {value.name for value in model.graph.input}


def test_windows_of_two_sizes_are_refused(tmp_path: Path) -> None:
    source = variant("gemma3_text", tmp_path / "hf")
    decoder = tiny_decoder(source)
    layers = (replace(decoder.layers[0], window=9), *decoder.layers[1:])
    with pytest.raises(ExportError, match="windows of 9, 12 tokens"):
        OnnxWriter("portable")(
            replace(decoder, layers=layers), TensorWeights(tiny_tensors(source)), tmp_path, lambda _: None
        )


def test_layers_of_one_rope_share_its_tables(tmp_path: Path) -> None:
    source = variant("gemma3_text", tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    tables = sorted(tensor.name for tensor in graph.initializer if tensor.name.startswith("cos_cache"))
    assert tables == ["cos_cache", "cos_cache.1"]


def test_a_residual_stream_beyond_fp16_does_not_overflow(tmp_path: Path) -> None:
    # Gemma's norms behind a branch scale it to hundreds of thousands; FP16 ends at 65504.
    source = variant("gemma3_text", tmp_path / "hf")
    tensors = tiny_tensors(source)
    for layer in range(4):
        tensors[f"model.layers.{layer}.post_feedforward_layernorm.weight"] += 100_000
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    np.testing.assert_allclose(PortableRunner.logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=FP16)


def test_large_keys_do_not_overflow_fp16(tmp_path: Path) -> None:
    # Qwen2.5's k_proj biases reach hundreds; q·k before scaling would leave FP16's range.
    source = tiny_checkpoint(tmp_path / "hf")
    tensors = tiny_tensors(source)
    for layer in range(3):
        tensors[f"model.layers.{layer}.self_attn.k_proj.bias"] += 300
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] += 20
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    assert np.isfinite(PortableRunner.logits(tmp_path / "onnx", TOKENS, threads=1)).all()


def test_weights_are_int4_blocks_along_the_inputs_with_no_transpose_before_the_product(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 64, Offset.SYMMETRIC, np.float16)))
    write(source, tmp_path / "onnx", weights)
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    product = {node.name: node for node in model.graph.node}
    for layer in range(3):
        source_node = product[f"/model/layers.{layer}/mlp/down_proj/DequantizeLinear"]
        assert product[f"/model/layers.{layer}/mlp/down_proj/MatMul"].input[1] == source_node.output[0]
        attributes = {a.name: a.i for a in source_node.attribute}
        assert attributes == {"axis": 0, "block_size": 64}
        packed, scales = (initializers[name] for name in source_node.input)
        assert (packed.data_type, list(packed.dims)) == (onnx.TensorProto.INT4, [192, 128])
        assert (scales.data_type, list(scales.dims)) == (onnx.TensorProto.FLOAT16, [3, 128])


def test_a_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    tensors = tiny_tensors(source)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    with pytest.raises(ExportError, match="too large for FP16"):
        write(source, tmp_path / "onnx", TensorWeights(tensors))
