"""The INT4 pass over graphs written by Optimum, compared with models that have the dequantized weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.export.architectures.decoder import Linear
from edgekit.export.optimum.int4_pass import quantize_graph
from edgekit.export.optimum.source import Source
from edgekit.export.quantization.grid import as_floats
from edgekit.export.recipes.recipe import Recipe, recipe_for
from edgekit.runners.base import Chunk
from edgekit.runners.optimum import OptimumRunner
from edgekit.target import load_target
from tests.export.optimum.graphs import MODELS, checkpoint, float_graph
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.oracle import transformers_logits
from tests.reference import forward

pytestmark = pytest.mark.optimum

FloatArray = npt.NDArray[np.float32]
TOKENS = [int(token) for token in np.random.default_rng(17).integers(0, 512, 60)]


def recipe(method: str = "lsq") -> Recipe:
    return recipe_for(load_target("cpu"), method, None)


def quantized(name: str, folder: Path, method: str = "lsq", accuracy_level: int = 1) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    graph = float_graph(name)
    source = Source(graph.folder)
    return dict(
        quantize_graph(
            source, folder, recipe(method), context_length=graph.context_length, accuracy_level=accuracy_level
        )
    )


def logits(folder: Path) -> FloatArray:
    runner = OptimumRunner(folder, threads=1)
    rows = [runner.run([Chunk(0, TOKENS[:40], "all")])[0].copy()]
    rows += [runner.run([Chunk(0, [token])])[0].copy() for token in TOKENS[40:]]
    runner.close()
    return np.concatenate(rows)


def dequantized(name: str, folder: Path, method: str) -> Path:
    """The checkpoint with every matrix put on its grid and back."""
    shutil.copytree(checkpoint(name), folder)
    tensors = load_file(folder / "model.safetensors")
    for key, value in tensors.items():
        # Position tables are not quantized, nor matrices that no group size divides.
        if value.ndim != 2 or "wpe" in key or "embed_positions" in key:
            continue
        transposed = name == "gpt2" and "wte" not in key
        matrix = np.ascontiguousarray(value.T if transposed else value)
        if matrix.shape[1] % 32 == 0:
            linear = Linear(key.removesuffix(".weight"), matrix.shape[1], matrix.shape[0])
            matrix = as_floats(recipe(method).apply(linear, matrix, "F32")[0])
        tensors[key] = np.ascontiguousarray(matrix.T if transposed else matrix)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["lsq", "rtn"])
@pytest.mark.parametrize("name", MODELS)
def test_the_quantized_graph_computes_what_the_dequantized_weights_compute(
    name: str, method: str, tmp_path: Path
) -> None:
    used = quantized(name, tmp_path / "graph", method)
    got = logits(tmp_path / "graph")
    expected = transformers_logits(dequantized(name, tmp_path / "checkpoint", method), TOKENS)
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert np.abs(got - transformers_logits(checkpoint(name), TOKENS)).max() > 0.1
    assert used[f"{method} 4-bit, group 32"] > 8


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_it_puts_a_model_on_the_same_grids_as_our_own_writer(name: str, tmp_path: Path) -> None:
    quantized(name, tmp_path / "graph")
    source = checkpoint(name)
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda linear, weight: recipe().apply(linear, weight, "F32")[0])
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(logits(tmp_path / "graph"), expected, atol=2e-3)


def test_activations_rounded_to_8_bits_leave_the_distribution_within_a_hundredth(tmp_path: Path) -> None:
    quantized("gpt2", tmp_path / "exact", accuracy_level=1)
    quantized("gpt2", tmp_path / "fast", accuracy_level=4)
    p, q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        for x in (logits(tmp_path / "exact"), logits(tmp_path / "fast"))
    )
    assert 0 < float((np.exp(p) * (p - q)).sum(-1).mean()) < 0.01
    assert np.mean(p.argmax(-1) == q.argmax(-1)) > 0.8


def test_without_quantization_the_graph_computes_the_same_to_the_last_bit(tmp_path: Path) -> None:
    used = quantized("gemma2", tmp_path / "graph", "none")
    assert set(used) == {"floating point"}
    np.testing.assert_allclose(logits(tmp_path / "graph"), logits(float_graph("gemma2").folder), atol=1e-5)


def test_what_no_group_size_fits_stays_in_floating_point_and_is_counted(tmp_path: Path) -> None:
    # Two layers of q, k, v, o and the first matrix of the MLP, the embedding, and its copy as the head.
    assert quantized("opt", tmp_path) == {"lsq 4-bit, group 32": 11, "floating point, no group size fits": 2}


def test_every_matrix_is_replaced_and_none_of_its_floats_stays(tmp_path: Path) -> None:
    quantized("gpt2", tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    names = {node.name for node in graph.node if node.op_type == "MatMulNBits"}
    parts = ["attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"]
    layers = {f"/transformer/h.{i}/{part}/MatMulNBits" for i in range(2) for part in parts}
    assert names == layers | {"/lm_head/MatMulNBits"}
    assert [node.name for node in graph.node if node.op_type == "GatherBlockQuantized"] == [
        "/transformer/wte/GatherBlockQuantized"
    ]
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    # The table of positions, and scales: [out, in / 32].
    assert sorted(t.name for t in floats if not t.name.endswith(".scales")) == ["transformer.wpe.weight"]
    assert {value.name for value in graph.input} >= {"input_ids", "logits_index", "past_key_values.1.value"}


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    quantized("llama", tmp_path / "tied")
    quantized("qwen2", tmp_path / "apart")
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("tied", "apart")]
    # 512 × 128 codes of half a byte, and for every 32 of them a scale and half a byte of zero point.
    table = 512 * 128 // 2 + 512 * 4 * 4 + 512 * 2
    assert sizes[1] - sizes[0] == pytest.approx(table, rel=0.2)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    quantized("gpt2", tmp_path / "one")
    quantized("gpt2", tmp_path / "two")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
