from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgekit.errors import BundleError
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk
from edgekit.runners.masks import PADDING, Masks
from edgekit.runners.native import NativeRunner
from edgekit.runners.portable import PortableRunner
from edgekit.runners.session import open_session
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs
from tests.reference import forward
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
Dtype = Literal["float16", "float32"]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 37)]
EVERY = pytest.mark.parametrize("name", VARIANTS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16"])
INT4 = Grid(4, 32, Offset.SYMMETRIC, np.float16)

# FP16 has 11 bits: logits of size 4 carry a rounding of about 2e-3 for each of some ten operations on the way.
FP16 = 3e-2


def write(source: Path, folder: Path, weights: TensorWeights, dtype: Dtype = "float16") -> Path:
    folder.mkdir(exist_ok=True)
    OnnxWriter("native", dtype=dtype)(tiny_decoder(source), weights, folder, lambda _: None)
    return folder


def in_chunks(runner: NativeRunner, chunks: list[int], slot: int = 0) -> FloatArray:
    got, done = [], 0
    for count in chunks:
        got.append(runner.run([Chunk(slot, TOKENS[done : done + count], "all")])[0])
        done += count
    return np.concatenate(got)


@EVERY
@DTYPES
@native_runs
def test_float_weights_give_the_references_logits(tmp_path: Path, name: str, dtype: Dtype) -> None:
    source = variant(name, tmp_path / "hf")
    tensors = tiny_tensors(source)
    write(source, tmp_path / "onnx", TensorWeights(tensors), dtype)
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    atol = FP16 if dtype == "float16" else 2e-3
    np.testing.assert_allclose(NativeRunner.logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=atol)


@EVERY
@native_runs
def test_int4_weights_give_the_logits_of_the_dequantized_model_at_once_in_chunks_and_token_by_token(
    tmp_path: Path, name: str
) -> None:
    source = variant(name, tmp_path / "hf")
    decoder = tiny_decoder(source)
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, INT4))
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    runner = NativeRunner(write(source, tmp_path / "onnx", weights), threads=1)
    for chunks in ([37], [1] * 37, [20, 1, 1, 15]):
        runner.truncate(0, 0)
        np.testing.assert_allclose(in_chunks(runner, chunks), expected, atol=FP16)


@DTYPES
@native_runs
def test_tokens_far_beyond_the_trained_length_look_back_to_the_first_ones(tmp_path: Path, dtype: Dtype) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    source = variant("qwen2-yarn", tmp_path / "hf", rope_scaling=yarn, max_position=32_768)
    decoder, tensors = tiny_decoder(source), tiny_tensors(source)
    assert decoder.max_position == 131_072
    write(source, tmp_path / "onnx", TensorWeights(tensors), dtype)
    # Twenty tokens at the start, ten behind the trained length and seven at the very end.
    gaps = np.repeat(np.array([0, 40_000 - 20, 131_072 - 37]), (20, 10, 7))
    columns = np.where(np.arange(48) < 37, np.arange(48), PADDING)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": np.array([TOKENS]),
        "position_ids": (gaps + np.arange(37))[None],
        "write_indices": np.array([0]),
        "logits_index": np.arange(37),
        **Masks(full=True, window=None, dtype=np.dtype(dtype)).step(0, 37, columns),
    }
    for layer in decoder.layers:
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer.index}.{part}"] = np.zeros((1, 2, 48, 32), dtype)
    got = open_session(tmp_path / "onnx", "native", threads=1).run(["logits"], feeds)[0][0]
    expected = forward(decoder, tensors.__getitem__, TOKENS, gaps)
    np.testing.assert_allclose(got, expected, atol=FP16 if dtype == "float16" else 2e-3)


@native_runs
def test_a_residual_stream_beyond_fp16_does_not_overflow(tmp_path: Path) -> None:
    # Gemma's norms behind a branch scale it to hundreds of thousands; FP16 ends at 65504.
    source = variant("gemma3_text", tmp_path / "hf")
    tensors = tiny_tensors(source)
    for layer in range(4):
        tensors[f"model.layers.{layer}.post_feedforward_layernorm.weight"] += 100_000
    write(source, tmp_path / "onnx", TensorWeights(tensors))
    expected = forward(tiny_decoder(source), tensors.__getitem__, TOKENS)
    np.testing.assert_allclose(NativeRunner.logits(tmp_path / "onnx", TOKENS, threads=1), expected, atol=FP16)


@native_runs
def test_a_step_writes_only_its_rows_into_the_given_cache(tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    runner = NativeRunner(tmp_path / "onnx", context_length=64, sequence_slots=2, threads=1)
    address = runner._kv.arrays[0].ctypes.data
    in_chunks(runner, [20], slot=1)
    before = runner.read_kv(1, 0, 20)
    runner.run([Chunk(1, TOKENS[20:25])])
    assert runner.read_kv(1, 0, 20) == before
    assert all(cache[1, :, 20:25].any() and not cache[1, :, 25:].any() for cache in runner._kv.arrays)
    assert not any(cache[0].any() for cache in runner._kv.arrays)
    assert runner._kv.arrays[0].ctypes.data == address


@native_runs
def test_tokens_cut_off_a_truncated_slot_are_not_attended_to(tmp_path: Path) -> None:
    source = variant("gemma3_text", tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)), "float32")
    runner = NativeRunner(tmp_path / "onnx", threads=1)
    full = in_chunks(runner, [37])
    runner.truncate(0, 10)
    np.testing.assert_allclose(runner.run([Chunk(0, TOKENS[10:], "all")])[0], full[10:], atol=1e-5)


@native_runs
def test_both_tensorrt_dialects_keep_the_same_cache(tmp_path: Path) -> None:
    source = variant("qwen3", tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, INT4))
    native = NativeRunner(write(source, tmp_path / "native", weights, "float32"), threads=1)
    (tmp_path / "portable").mkdir()
    OnnxWriter("portable", dtype="float32")(tiny_decoder(source), weights, tmp_path / "portable", lambda _: None)
    portable = PortableRunner(tmp_path / "portable", threads=1)
    runner: Any
    for runner in (native, portable):
        runner.run([Chunk(0, TOKENS)])
    rows = [np.frombuffer(runner.read_kv(0, 0, 37), np.float32) for runner in (native, portable)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_the_graph_is_made_of_the_operators_that_tensorrt_fuses(tmp_path: Path) -> None:
    source = variant("qwen3", tmp_path / "hf", layers=2)
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, INT4))
    write(source, tmp_path / "onnx", weights)
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    kinds = [node.op_type for node in model.graph.node]
    # Two norms and two of heads in each layer, and the last one.
    assert [kinds.count(kind) for kind in ("RMSNormalization", "RotaryEmbedding", "TensorScatter", "Attention")] == [
        9, 4, 4, 2,
    ]  # fmt: skip
    assert not {"Softmax", "Sqrt", "ReduceMean", "Split"} & set(kinds)
    for node in model.graph.node:
        if node.op_type == "Attention":
            # TensorRT supports neither the operator's own cache, nor a length, nor a softmax precision.
            assert len(node.input) == 4
            assert {attribute.name for attribute in node.attribute} == {"scale"}
    positions = next(value for value in model.graph.input if value.name == "position_ids")
    assert positions.type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_partial_rope_rotates_only_a_part_of_each_head(tmp_path: Path) -> None:
    source = variant("phi3-partial", tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    rotary_dims = {a.i for n in graph.node if n.op_type == "RotaryEmbedding" for a in n.attribute if "dim" in a.name}
    assert rotary_dims == {24}


@native_runs
def test_a_bundle_of_this_dialect_opens_in_its_runner_and_no_other(tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    write(source, tmp_path / "onnx", TensorWeights(tiny_tensors(source)))
    runner = open_runner(tmp_path / "onnx", "onnx", "native", context_length=64, threads=1)
    assert isinstance(runner, NativeRunner)
    assert runner.limits.context_length == 64
    assert runner.run([Chunk(0, TOKENS)])[0].shape == (1, 512)
    with pytest.raises(BundleError, match="written in the `native` dialect"):
        PortableRunner(tmp_path / "onnx")
