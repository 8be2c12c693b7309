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
from tests import reference
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.ort_version import WINDOWS_RUN
from tests.reference import forward
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 100)]
KINDS = [(bits, offset) for bits in (4, 8) for offset in Offset if (bits, offset) != (4, Offset.ZERO_POINT)]
RUNNABLE = [name for name, keys in VARIANTS.items() if WINDOWS_RUN or not keys.get("sliding_window")]
ALL = pytest.mark.parametrize("name", RUNNABLE)


def write(
    source: Path, folder: Path, weights: TensorWeights, accuracy_level: Literal[1, 4] = 1
) -> tuple[Artifact, list[str]]:
    folder.mkdir(exist_ok=True)
    written: list[str] = []
    writer = OnnxWriter("onnxruntime", accuracy_level=accuracy_level)
    return writer(tiny_decoder(source), weights, folder, written.append), written


def logits(folder: Path, chunks: tuple[int, ...] = (len(TOKENS),)) -> FloatArray:
    runner, done, got = OnnxRuntimeRunner(folder, threads=1), 0, []
    for count in chunks:
        got.append(runner.run([Chunk(0, TOKENS[done : done + count], "all")])[0].copy())
        done += count
    return np.concatenate(got)


def kl(reference: FloatArray, other: FloatArray) -> float:
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (reference, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@ALL
def test_float_weights_give_the_references_logits_at_once_in_chunks_and_token_by_token(
    tmp_path: Path, name: str
) -> None:
    source = variant(name, tmp_path / "hf")
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    for chunks in ((100,), (11, 40, 1, 1, 30, 17), (1,) * 100):
        np.testing.assert_allclose(logits(tmp_path / "onnx", chunks), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "bits", "offset"),
    [
        *((name, 4, Offset.ZERO_POINT) for name in RUNNABLE),
        *((name, *kind) for name in ("qwen2-tied", "llama-biased", "phi3-partial") for kind in KINDS),
    ],
)
def test_quantized_weights_give_the_logits_of_the_dequantized_model(
    tmp_path: Path, name: str, bits: int, offset: Offset
) -> None:
    source = variant(name, tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(bits, 32, offset)))
    write(source, tmp_path / "onnx", weights)
    got = logits(tmp_path / "onnx")
    np.testing.assert_allclose(got, forward(decoder, weights.stored(decoder).__getitem__, TOKENS), atol=2e-3)
    if bits == 4:
        assert np.abs(got - forward(decoder, weights.tensors.__getitem__, TOKENS)).max() > 0.05


@ALL
def test_activations_rounded_to_8_bits_leave_the_distribution_within_a_hundredth(tmp_path: Path, name: str) -> None:
    source = variant(name, tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.ZERO_POINT)))
    write(source, tmp_path / "onnx", weights, accuracy_level=4)
    expected, got = forward(decoder, weights.stored(decoder).__getitem__, TOKENS), logits(tmp_path / "onnx")
    assert 0 < kl(expected, got) < 0.01
    assert np.mean(expected.argmax(-1) == got.argmax(-1)) > 0.8


def test_positions_beyond_the_trained_length_agree_with_yarn(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    source = tiny_checkpoint(
        tmp_path / "hf", layers=1, heads=1, kv_heads=1, hidden=32, max_position=32768, rope_scaling=yarn
    )
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    tokens = np.random.default_rng(1).integers(0, 512, 33_010)
    runner = OnnxRuntimeRunner(tmp_path / "onnx", max_chunk=1100)
    assert runner.limits.context_length == 131_072
    for start in range(0, 33_000, 1100):
        runner.run([Chunk(0, [int(token) for token in tokens[start : start + 1100]], "none")])
    got = [runner.run([Chunk(0, [int(token)])])[0][0].copy() for token in tokens[33_000:]]
    np.testing.assert_allclose(np.stack(got), last_rows(source, tensors, tokens, 10), atol=2e-3)


def last_rows(source: Path, tensors: dict[str, FloatArray], tokens: npt.NDArray[np.int64], count: int) -> FloatArray:
    """Logits of the last tokens of a one-layer model: only they need queries, so the cost is linear in the length."""
    decoder, get = tiny_decoder(source), tensors.__getitem__
    layer, dim = decoder.layers[0], decoder.head_dim
    x = tensors[decoder.embedding.weight][tokens]
    h = reference._rms_norm(decoder, get, x, layer.input_norm)
    key = reference._rope(layer.rope, reference._linear(layer.k, get, h).reshape(len(tokens), -1, dim), 0)[:, 0]
    value = reference._linear(layer.v, get, h)
    x, h = x[-count:], h[-count:]
    query = reference._linear(layer.q, get, h).reshape(count, -1, dim)
    scores = reference._rope(layer.rope, query, len(tokens) - count) @ key.T * np.float32(decoder.attention_scale)
    unseen = np.arange(len(tokens)) > np.arange(len(tokens) - count, len(tokens))[:, None, None]
    scores = np.exp(np.where(unseen, -np.inf, scores - scores.max(-1, keepdims=True)))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ value
    x = x + reference._linear(layer.o, get, mixed.reshape(count, -1).astype(np.float32))
    x = x + reference._mlp(decoder, layer, get, reference._rms_norm(decoder, get, x, layer.mlp_norm))
    return reference._linear(decoder.head, get, reference._rms_norm(decoder, get, x, decoder.final_norm))


def test_matrices_on_different_grids_are_not_fused_and_still_right(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3_text"])
def test_every_tensor_is_read_once_and_reported(tmp_path: Path, name: str) -> None:
    source = variant(name, tmp_path / "hf")
    read: list[str] = []
    tensors = tiny_tensors(source)

    class Counting(TensorWeights):
        def vector(self, name: str) -> FloatArray:
            read.append(name)
            return super().vector(name)

        def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
            read.append(linear.weight)
            return super().matrix(linear)

    _, written = write(source, tmp_path / "onnx", Counting(tensors))
    assert sorted(read) == sorted(written) == sorted(tensors)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.ZERO_POINT)))
    artifact, _ = write(source, tmp_path / "one", weights)
    write(source, tmp_path / "two", weights)
    assert artifact.files == ("model.onnx", "model_batched.onnx", "model_genai.onnx", "model.onnx.data")
    for name in artifact.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_model_files_have_no_weights_but_their_metadata(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    needed = {"edgekit.onnxruntime": "1.32"}
    for name, dialect, more in (
        ("model.onnx", "onnxruntime", {}),
        ("model_batched.onnx", "onnxruntime", needed),
        ("model_genai.onnx", "onnxruntime-genai", {}),
    ):
        model = onnx.load(tmp_path / "onnx" / name, load_external_data=False)
        assert max(len(tensor.raw_data) for tensor in model.graph.initializer) <= 256
        assert {prop.key: prop.value for prop in model.metadata_props} == {
            "edgekit.dialect": dialect,
            "edgekit.context_length": "256",
            "edgekit.positions": "257",
            **more,
        }


@pytest.mark.parametrize(("window", "needed"), [(12, "1.24"), (255, "1.24"), (256, None), (None, None)])
def test_a_window_shorter_than_the_context_requires_an_onnxruntime_that_computes_it_correctly(
    tmp_path: Path, window: int | None, needed: str | None
) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type="mistral", sliding_window=window, layers=1)
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    assert {prop.key: prop.value for prop in model.metadata_props}.get("edgekit.onnxruntime") == needed


@pytest.mark.parametrize(
    ("bits", "size", "offset", "needed"),
    [
        (4, 128, Offset.ZERO_POINT, "1.27"),
        (4, 64, Offset.ZERO_POINT, None),
        (8, 128, Offset.ZERO_POINT, None),
        (4, 128, Offset.SYMMETRIC, None),
    ],
)
def test_a_table_with_an_odd_number_of_groups_requires_an_onnxruntime_that_reads_it_correctly(
    tmp_path: Path, bits: int, size: int, offset: Offset, needed: str | None
) -> None:
    source = tiny_checkpoint(tmp_path / "hf", layers=1)
    weights = TensorWeights(
        tiny_tensors(source),
        lambda linear, weight: lsq(weight, Grid(bits, size if "embed" in linear.name else 32, offset)),
    )
    write(source, tmp_path / "onnx", weights)
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    assert {prop.key: prop.value for prop in model.metadata_props}.get("edgekit.onnxruntime") == needed


def test_a_group_size_that_onnxruntime_does_not_support_is_refused_by_name(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 8, Offset.SYMMETRIC)))
    with pytest.raises(ExportError, match=r"model\.embed_tokens\.weight.*groups of 8"):
        write(source, tmp_path / "onnx", weights)


def test_layers_with_the_same_rope_share_their_tables(tmp_path: Path) -> None:
    for name, tables in (("llama", 1), ("gemma3_text", 2)):
        source = variant(name, tmp_path / name)
        write(source, tmp_path / f"{name}-onnx", TensorWeights(tiny_tensors(source)))
        graph = onnx.load(tmp_path / f"{name}-onnx" / "model.onnx", load_external_data=False).graph
        assert sum(tensor.name.startswith("cos_cache") for tensor in graph.initializer) == tables


def test_head_sizes_that_onnxruntime_cannot_rotate_are_refused_before_anything_is_quantized(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", head_dim=40)
    with pytest.raises(ExportError, match="a multiple of 16; this model's is 40"):
        write(source, tmp_path / "onnx", TensorWeights({}))
