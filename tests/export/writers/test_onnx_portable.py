from __future__ import annotations

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
from edgekit.runners.portable import PortableRunner, portable_logits
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward

FloatArray = npt.NDArray[np.float32]
ModelType = Literal["qwen2", "llama"]
Dtype = Literal["float16", "float32"]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 37)]
BOTH = pytest.mark.parametrize(
    ("model_type", "tied"), [("qwen2", True), ("qwen2", False), ("llama", True), ("llama", False)]
)

# FP16 has 11 bits: logits of size 4 carry a rounding of about 2e-3 for each of some ten operations on the way.
FP16 = 3e-2


def write(source: Path, folder: Path, weights: TensorWeights, dtype: Dtype = "float16") -> None:
    folder.mkdir(exist_ok=True)
    OnnxWriter("portable", dtype=dtype)(tiny_decoder(source), weights, folder, lambda _: None)


@BOTH
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-3), ("float16", FP16)])
def test_float_weights_give_the_references_logits(
    tmp_path: Path, model_type: ModelType, tied: bool, dtype: Dtype, atol: float
) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type=model_type, tied=tied)
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors), dtype)
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    np.testing.assert_allclose(portable_logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=atol)


@BOTH
@pytest.mark.parametrize(
    "grid",
    [Grid(bits, 32, offset, np.float16) for bits in (4, 8) for offset in Offset],
    ids=lambda grid: f"{grid.bits}-{grid.offset.value}",
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_quantized_weights_give_the_logits_of_the_dequantized_model(
    tmp_path: Path, model_type: ModelType, tied: bool, grid: Grid, dtype: Dtype
) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type=model_type, tied=tied)
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, grid))
    write(source, tmp_path / "onnx", weights, dtype)
    got = portable_logits(tmp_path / "onnx", TOKENS, threads=1)
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(got, expected, atol=FP16 if dtype == "float16" else 2e-3)
    if grid.bits == 4:
        assert np.abs(got - forward(decoder, weights.tensors.__getitem__, TOKENS)).max() > 2 * FP16


def test_negative_and_zero_scales_are_held_although_tensorrt_takes_positive_ones_only(tmp_path: Path) -> None:
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
    np.testing.assert_allclose(portable_logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=2e-3)


@pytest.mark.parametrize("pieces", [[37], [1] * 37, [20, 1, 1, 15]])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(tmp_path: Path, pieces: list[int]) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, Offset.SYMMETRIC, np.float16)))
    write(source, tmp_path / "onnx", weights)
    whole = portable_logits(tmp_path / "onnx", TOKENS, threads=1)
    runner, done, got = PortableRunner(tmp_path / "onnx", threads=1), 0, []
    for count in pieces:
        got.append(runner.run([Chunk(0, TOKENS[done : done + count], "all")])[0])
        done += count
    np.testing.assert_allclose(np.concatenate(got), whole, atol=FP16)


def test_large_keys_do_not_overflow_fp16(tmp_path: Path) -> None:
    # Qwen2.5's k_proj biases reach hundreds; q·k before scaling would leave FP16's range.
    source = tiny_checkpoint(tmp_path / "hf")
    tensors = tiny_tensors(source)
    for layer in range(3):
        tensors[f"model.layers.{layer}.self_attn.k_proj.bias"] += 300
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] += 20
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    assert np.isfinite(portable_logits(tmp_path / "onnx", TOKENS, threads=1)).all()


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
