"""The description of a model in one of TensorRT's dialects is what was exported; unsupported graphs are rejected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

from edgekit.errors import BundleError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.evaluation.readers.tensorrt import TensorRtTensors
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.onnx_reader.match_model import Matrix, ModelDescription, Unsupported, describe
from edgekit.runners.cpu.runner import CpuRunner
from edgekit.target import load_target
from tests import reference
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.runners.cpu.onnx_reader.changes import accepted
from tests.runners.cpu.reference import FloatArray, dequantized, forward
from tests.variants import VARIANTS, variant

Dialect = Literal["portable", "native"]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 60)]
DIALECTS = pytest.mark.parametrize("dialect", ["portable", "native"])
GRIDS = [Grid(bits, 32, offset, np.float16) for bits in (4, 8) for offset in Offset]


def written(source: Path, folder: Path, dialect: Dialect, weights: TensorWeights) -> Path:
    folder.mkdir()
    OnnxWriter(dialect)(tiny_decoder(source), weights, folder, lambda _: None)
    return folder


def quantized(source: Path, grid: Grid) -> TensorWeights:
    return TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, grid))


def check_matrices(folder: Path, decoder: Decoder) -> ModelDescription:
    """Check that every weight is what `edgekit eval` reads back, up to the rounding of a sum of three numbers."""
    model, back = describe(folder), TensorRtTensors(folder, decoder)
    found: list[tuple[Matrix, Any]] = [(model.embedding, decoder.embedding), (model.head, decoder.head)]
    for described, layer in zip(model.layers, decoder.layers, strict=True):
        linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
        matrices = (*described.qkv, described.o, *described.gate_up, described.down)
        found += zip(matrices, linears, strict=True)
    for matrix, linear in found:
        # A tied head is written a second time, by columns, and its offsets are rounded another way.
        tied = linear is decoder.head and decoder.tied
        expected = back.matrix(decoder.embedding if tied else linear)
        atol = 2.0**-11 * np.abs(expected).max() if tied else 1e-6
        np.testing.assert_allclose(dequantized(matrix), expected, rtol=0, atol=atol)
        assert (matrix.bias is None) == (not linear.bias)
        if matrix.bias is not None:
            np.testing.assert_array_equal(matrix.bias, back.bias(linear))
        assert not matrix.codes.flags.writeable
    return model


@DIALECTS
@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_is_described_so_that_it_computes_the_references_logits(
    name: str, dialect: Dialect, tmp_path: Path
) -> None:
    source = variant(name, tmp_path / "hf")
    decoder, weights = tiny_decoder(source), quantized(source, GRIDS[0])
    model = check_matrices(written(source, tmp_path / "onnx", dialect, weights), decoder)
    expected = reference.forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    # RoPE tables, biases and the scale of the queries are FP16.
    np.testing.assert_allclose(forward(model, TOKENS), expected, atol=1e-2)
    assert (model.heads, model.kv_heads, model.head_dim) == (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim)
    assert (model.vocab_size, model.context_length) == (decoder.vocab_size, decoder.max_position)
    assert model.positions == decoder.max_position
    windows = [-1 if layer.window is None or layer.window >= decoder.max_position else layer.window
               for layer in decoder.layers]  # fmt: skip
    assert [layer.window for layer in model.layers] == windows


@DIALECTS
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.offset.value}")
@pytest.mark.parametrize("name", ["qwen2-tied", "llama-biased", "phi3-partial", "gemma3_text"])
def test_every_grid_is_described_as_eval_reads_it(name: str, grid: Grid, dialect: Dialect, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf", layers=2, layer_types=None)
    decoder, weights = tiny_decoder(source), quantized(source, grid)
    model = check_matrices(written(source, tmp_path / "onnx", dialect, weights), decoder)
    expected = reference.forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(forward(model, TOKENS), expected, atol=1e-2)
    symmetric = grid.offset is Offset.SYMMETRIC
    for matrix in (*model.layers[0].qkv, model.layers[1].down, model.embedding):
        assert matrix.bits == grid.bits
        assert (matrix.factors()[1] is None) == symmetric


@DIALECTS
@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_of_a_gguf_are_described(encoding: str, dialect: Dialect, tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    gguf = write_gguf(source, tmp_path / "model.gguf", encoding=encoding)
    target = load_target("rtx", dialect=dialect)
    bundle = export_bundle(str(gguf), target, tmp_path / "bundle", ExportOptions(), silent)
    assert bundle.manifest.artifact.dialect == dialect
    check_matrices(bundle.path, tiny_decoder(source))


@DIALECTS
def test_scales_too_small_for_fp16_change_no_weight_by_more_than_its_rounding(dialect: Dialect, tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf", layers=1)
    tensors = tiny_tensors(source)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"):
        tensors[name][:7] *= np.geomspace(1e-1, 1e-7, 7, dtype=np.float32)[:, None]
        tensors[name][7] = 0
    weights = TensorWeights(tensors, lambda _, weight: lsq(weight, Grid(8, 32, Offset.SYMMETRIC, np.float16)))
    check_matrices(written(source, tmp_path / "onnx", dialect, weights), tiny_decoder(source))


@pytest.mark.parametrize("group", [0, 1])
def test_planes_that_do_not_belong_together_are_unsupported(group: int, tmp_path: Path, best: Kernels) -> None:
    source = variant("qwen2", tmp_path / "hf", layers=1)
    folder = written(source, tmp_path / "onnx", "portable", quantized(source, GRIDS[3]))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    low = next(t for t in model.graph.initializer if t.name == "model.layers.0.mlp.down_proj.weight.low_scales")
    location = {entry.key: entry.value for entry in low.external_data}
    with (folder / "model.onnx.data").open("r+b") as file:
        file.seek(int(location["offset"]) + 2 * 128 * group)
        file.write(np.float16(0.25).tobytes())
    # All scales are checked when they are loaded, the first group's before.
    with pytest.raises(Unsupported, match="belong"):
        CpuRunner(describe(folder), best, threads=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with all norms, offsets and a window in each dialect; `plain` has what others do differently."""
    place = tmp_path_factory.mktemp("full")
    sizes = {"layers": 1, "hidden": 64, "intermediate": 64, "heads": 2, "kv_heads": 1, "head_dim": 32, "vocab": 300}
    source = variant("gemma3_text", place / "hf", layer_types=["sliding_attention"], **sizes)

    def quantize(linear: Linear, weight: FloatArray) -> GroupedTensor:
        """Two planes for a matrix, offsets for another, both for the embedding."""
        bits = 8 if linear.name.endswith(("down_proj", "embed_tokens")) else 4
        offsets = linear.name.endswith(("v_proj", "embed_tokens"))
        return lsq(weight, Grid(bits, 32, Offset.FLOAT if offsets else Offset.SYMMETRIC, np.float16))

    for dialect in ("portable", "native"):
        written(source, place / dialect, dialect, TensorWeights(tiny_tensors(source), quantize))
    return place


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    sizes = {"layers": 1, "hidden": 64, "intermediate": 64, "heads": 2, "kv_heads": 2, "vocab": 300}
    source = variant("phi3-partial", place / "hf", **sizes)
    for dialect in ("portable", "native"):
        written(source, place / dialect, dialect, quantized(source, GRIDS[0]))
    biased = variant("llama-biased", place / "hf-biased", **sizes)
    written(biased, place / "biased", "native", quantized(biased, GRIDS[0]))
    return place


@pytest.mark.parametrize(
    ("bundle", "name", "at_least"),
    [
        ("full", "portable", 1000),
        ("full", "native", 600),
        ("plain", "portable", 700),
        ("plain", "native", 400),
        ("plain", "biased", 400),
    ],
)
def test_a_graph_with_a_single_difference_is_never_accepted(
    bundle: str, name: str, at_least: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(request.getfixturevalue(bundle) / name, tmp_path, dirs_exist_ok=True)
    passed, count = accepted(tmp_path)
    assert passed == []
    assert count > at_least


@DIALECTS
def test_the_middle_of_the_embeddings_codes_must_be_what_its_bits_say(
    plain: Path, dialect: Dialect, tmp_path: Path
) -> None:
    shutil.copytree(plain / dialect, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    half = next(tensor for tensor in model.graph.initializer if tensor.name == "table_half")
    half.raw_data = np.float32(7).tobytes()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Unsupported, match=r"reads 7\.0 instead of 8\.0"):
        describe(tmp_path)


@DIALECTS
def test_a_window_that_does_not_belong_to_the_graph_is_refused(
    full: Path, plain: Path, dialect: Dialect, tmp_path: Path
) -> None:
    for place, values in ((full, (None, "", "0", "-1", "1e1", "9" * 5000)), (plain, ("12",))):
        shutil.copytree(place / dialect, tmp_path, dirs_exist_ok=True)
        model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        for value in values:
            changed = {**metadata, "edgekit.window": value}
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, {key: text for key, text in changed.items() if text is not None})
            (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
            with pytest.raises(BundleError, match=r"edgekit\.window"):
                describe(tmp_path)


@DIALECTS
def test_floating_point_is_refused(dialect: Dialect, tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf", layers=1)
    with pytest.raises(Unsupported, match=r"is not the expected DequantizeLinear"):
        describe(written(source, tmp_path / "onnx", dialect, TensorWeights(tiny_tensors(source))))


def test_float32_graphs_of_parity_tests_are_refused(tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf", layers=1)
    (tmp_path / "onnx").mkdir()
    weights = quantized(source, GRIDS[0])
    OnnxWriter("portable", dtype="float32")(tiny_decoder(source), weights, tmp_path / "onnx", lambda _: None)
    with pytest.raises(Unsupported):
        describe(tmp_path / "onnx")
