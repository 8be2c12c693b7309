from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.base import Artifact
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward

FloatArray = npt.NDArray[np.float32]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 37)]
BOTH = pytest.mark.parametrize(
    ("model_type", "tied"), [("qwen2", True), ("qwen2", False), ("llama", True), ("llama", False)]
)
ModelType = Literal["qwen2", "llama"]


def write(
    source: Path, folder: Path, weights: TensorWeights, accuracy_level: Literal[1, 4] = 1
) -> tuple[Artifact, list[str]]:
    folder.mkdir(exist_ok=True)
    written: list[str] = []
    writer = OnnxWriter("onnxruntime", accuracy_level=accuracy_level)
    return writer(tiny_decoder(source), weights, folder, written.append), written


def logits(folder: Path) -> FloatArray:
    return OnnxRuntimeRunner(folder, threads=1).run([Chunk(0, TOKENS, "all")])[0]


def kl(reference: FloatArray, other: FloatArray) -> float:
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (reference, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@BOTH
def test_float_weights_give_the_references_logits(tmp_path: Path, model_type: ModelType, tied: bool) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type=model_type, tied=tied)
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    np.testing.assert_allclose(logits(tmp_path / "onnx"), expected, atol=2e-3)


@pytest.mark.parametrize("offset", list(Offset))
@pytest.mark.parametrize("bits", [4, 8])
@BOTH
def test_quantized_weights_give_the_logits_of_the_dequantized_model(
    tmp_path: Path, model_type: ModelType, tied: bool, bits: int, offset: Offset
) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type=model_type, tied=tied)
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(bits, 32, offset)))
    write(source, tmp_path / "onnx", weights)
    got = logits(tmp_path / "onnx")
    np.testing.assert_allclose(got, forward(decoder, weights.stored(decoder).__getitem__, TOKENS), atol=2e-3)
    if bits == 4:
        assert np.abs(got - forward(decoder, weights.tensors.__getitem__, TOKENS)).max() > 0.05


def test_activations_rounded_to_8_bits_leave_the_distribution_within_a_hundredth(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.ZERO_POINT)))
    write(source, tmp_path / "onnx", weights, accuracy_level=4)
    expected, got = forward(decoder, weights.stored(decoder).__getitem__, TOKENS), logits(tmp_path / "onnx")
    assert 0 < kl(expected, got) < 0.01
    assert np.mean(expected.argmax(-1) == got.argmax(-1)) > 0.8


def test_matrices_on_different_grids_are_not_joined_and_still_right(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    decoder = tiny_decoder(source)

    def mixed(linear: Linear, weight: FloatArray) -> GroupedTensor | FloatArray:
        if linear.name.endswith(("v_proj", "up_proj")):
            return lsq(weight, Grid(8, 64, Offset.SYMMETRIC))
        if linear.name.endswith("layers.1.self_attn.q_proj"):
            return weight
        return lsq(weight, Grid(4, 32, Offset.ZERO_POINT))

    weights = TensorWeights(tiny_tensors(source), mixed)
    write(source, tmp_path / "onnx", weights)
    names = {node.name for node in onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph.node}
    assert "/model/layers.0/attn/v_proj/MatMulNBits" in names
    assert "/model/layers.1/attn/q_proj/MatMul" in names
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(logits(tmp_path / "onnx"), expected, atol=2e-3)


def test_matrices_on_one_grid_that_read_one_input_become_one_node(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", layers=2)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.ZERO_POINT)))
    write(source, tmp_path / "onnx", weights)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    products = [node.name for node in graph.node if node.op_type == "MatMulNBits"]
    per_layer = ["attn/qkv_proj", "attn/o_proj", "mlp/gate_up_proj", "mlp/down_proj"]
    expected = [f"/model/layers.{i}/{part}/MatMulNBits" for i in range(2) for part in per_layer]
    assert products == [*expected, "/lm_head/MatMulNBits"]


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", tied=True, vocab=4096, layers=1)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(8, 32, Offset.SYMMETRIC)))
    write(source, tmp_path / "onnx", weights)
    table = 4096 * 128
    rest = sum(value.size for name, value in weights.tensors.items() if "embed" not in name) * 1.25
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size < table * 1.125 + rest + 256 * 16 * 8 + 65_536


def test_every_tensor_is_asked_for_once_and_reported(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    asked: list[str] = []
    tensors = tiny_tensors(source)

    class Counting(TensorWeights):
        def vector(self, name: str) -> FloatArray:
            asked.append(name)
            return super().vector(name)

        def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
            asked.append(linear.weight)
            return super().matrix(linear)

    _, written = write(source, tmp_path / "onnx", Counting(tensors))
    assert sorted(asked) == sorted(written) == sorted(tensors)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.ZERO_POINT)))
    artifact, _ = write(source, tmp_path / "one", weights)
    write(source, tmp_path / "two", weights)
    assert artifact.files == ("model.onnx", "model.onnx.data")
    for name in artifact.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_model_file_holds_no_weights(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    assert max(len(tensor.raw_data) for tensor in model.graph.initializer) <= 256
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "edgekit.dialect": "onnxruntime",
        "edgekit.context_length": "256",
    }


def test_a_group_size_that_onnxruntime_does_not_take_is_refused_by_name(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 8, Offset.SYMMETRIC)))
    with pytest.raises(ExportError, match=r"model\.embed_tokens\.weight.*groups of 8"):
        write(source, tmp_path / "onnx", weights)
