"""The description of a model is what was exported; unsupported graphs are rejected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.errors import BundleError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.evaluation.readers.onnxruntime import OnnxRuntimeTensors
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.cpu.onnx_reader.match_model import Matrix, ModelDescription, Unsupported, describe
from edgekit.target import load_target
from tests import reference
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.runners.cpu.onnx_reader.changes import accepted
from tests.runners.cpu.reference import FloatArray, dequantized, forward
from tests.variants import VARIANTS, variant

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 60)]
GRIDS = [Grid(bits, 32, offset) for bits in (4, 8) for offset in Offset]


def written(source: Path, folder: Path, weights: TensorWeights) -> Path:
    folder.mkdir()
    OnnxWriter("onnxruntime")(tiny_decoder(source), weights, folder, lambda _: None)
    return folder


def exported(source: Path, folder: Path, **options: Any) -> Path:
    return export_bundle(str(source), load_target("cpu"), folder, ExportOptions(**options), silent).path


def quantized(source: Path, grid: Grid) -> TensorWeights:
    return TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, grid))


def rows(matrices: tuple[Matrix, ...]) -> tuple[FloatArray, FloatArray]:
    """Stack the matrices that read one input, and their biases."""
    biases = [np.zeros(m.shape[0], np.float32) if m.bias is None else m.bias for m in matrices]
    return np.concatenate([dequantized(matrix) for matrix in matrices]), np.concatenate(biases)


def check_matrices(folder: Path, decoder: Decoder) -> ModelDescription:
    """Check that every weight is bit-identical to what `edgekit eval` reads back."""
    model, back = describe(folder), OnnxRuntimeTensors(folder, decoder)

    def expected(linears: tuple[Linear, ...]) -> tuple[FloatArray, FloatArray]:
        values, biases = [], []
        for linear in linears:
            # The order in which partially rotated heads are stored.
            order = back._order.get(linear.name)
            back_to = slice(None) if order is None else np.argsort(order)
            values.append(back.matrix(linear)[back_to])
            bias = back.bias(linear) if linear.bias else np.zeros(linear.out_features, np.float32)
            biases.append(bias[back_to])
        return np.concatenate(values), np.concatenate(biases)

    found: list[tuple[tuple[Matrix, ...], tuple[Linear, ...]]] = [
        ((model.embedding,), (decoder.embedding,)),
        ((model.head,), (decoder.embedding if decoder.tied else decoder.head,)),
    ]
    for described, layer in zip(model.layers, decoder.layers, strict=True):
        found += [
            (described.qkv, (layer.q, layer.k, layer.v)),
            ((described.o,), (layer.o,)),
            (described.gate_up, (layer.gate, layer.up)),
            ((described.down,), (layer.down,)),
        ]
    for matrices, linears in found:
        for one, other in zip(rows(matrices), expected(linears), strict=True):
            np.testing.assert_array_equal(one, other)
        for matrix in matrices:
            assert not matrix.codes.flags.owndata
            assert not matrix.codes.flags.writeable
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_is_described_so_that_it_computes_the_references_logits(name: str, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf")
    decoder, weights = tiny_decoder(source), quantized(source, Grid(4, 32, Offset.ZERO_POINT))
    model = check_matrices(written(source, tmp_path / "onnx", weights), decoder)
    expected = reference.forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(forward(model, TOKENS), expected, atol=2e-3)
    assert (model.heads, model.kv_heads, model.head_dim) == (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim)
    assert (model.vocab_size, model.context_length) == (decoder.vocab_size, decoder.max_position)
    assert model.positions == decoder.max_position + 1
    assert (model.head is model.embedding) == decoder.tied


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.offset.value}")
@pytest.mark.parametrize("name", ["qwen2-tied", "llama-biased", "phi3-partial", "gemma3_text"])
def test_every_grid_is_described_as_eval_reads_it(name: str, grid: Grid, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf")
    decoder, weights = tiny_decoder(source), quantized(source, grid)
    model = check_matrices(written(source, tmp_path / "onnx", weights), decoder)
    expected = reference.forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(forward(model, TOKENS), expected, atol=2e-3)
    assert all(matrix.bits == grid.bits for layer in model.layers for matrix in (*layer.qkv, layer.down))
    assert (model.layers[0].o.zero_points is None) == (grid.offset is Offset.SYMMETRIC)
    assert (model.layers[0].o.float_offsets is not None) == (grid.offset is Offset.FLOAT)
    assert (model.head is model.embedding) == decoder.tied


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3_text"])
def test_matrices_on_several_grids_are_not_fused_and_groups_may_be_odd(name: str, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf", intermediate=224)

    def quantize(linear: Linear, weight: FloatArray) -> GroupedTensor:
        bits = 8 if linear.name.endswith(("k_proj", "up_proj", "lm_head")) else 4
        return lsq(weight, Grid(bits, 32, Offset.FLOAT if "layers.1" in linear.name else Offset.ZERO_POINT))

    decoder, weights = tiny_decoder(source), TensorWeights(tiny_tensors(source), quantize)
    model = check_matrices(written(source, tmp_path / "onnx", weights), decoder)
    assert all(len(layer.qkv) == 3 and len(layer.gate_up) == 2 for layer in model.layers)
    assert model.layers[0].down.codes.shape[1] == 7
    expected = reference.forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    np.testing.assert_allclose(forward(model, TOKENS), expected, atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"recipe": "rtn"}, {"recipe": "lsq"}, {"recipe": "lsq", "head_bits": 8, "embedding_bits": 8}],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "auto",
)
@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "gemma3_text"])
def test_the_results_of_recipes_are_described(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf")
    check_matrices(exported(source, tmp_path / "bundle", **options), tiny_decoder(source))


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_of_a_gguf_are_described(encoding: str, tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    gguf = write_gguf(source, tmp_path / "model.gguf", encoding=encoding)
    model = check_matrices(exported(gguf, tmp_path / "bundle"), tiny_decoder(source))
    assert (model.layers[0].o.float_offsets is not None) == (encoding == "Q4_1")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with all norms and offsets; `plain` covers what `qwen2` does differently."""
    place = tmp_path_factory.mktemp("sound")
    sizes = {"layers": 2, "hidden": 64, "intermediate": 64, "heads": 1, "head_dim": 32, "vocab": 300}
    kinds = ["sliding_attention", "full_attention"]
    source = variant("gemma3_text", place / "hf", layer_types=kinds, **sizes)
    return written(source, place / "onnx", quantized(source, Grid(4, 32, Offset.FLOAT)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    sizes = {"layers": 2, "hidden": 64, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300}
    source = variant("qwen2", place / "hf", **sizes)
    return written(source, place / "onnx", quantized(source, Grid(4, 32, Offset.ZERO_POINT)))


def test_floating_point_is_refused(tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    with pytest.raises(Unsupported, match=r"`/lm_head/MatMul` \(MatMul\) is not the expected MatMulNBits"):
        describe(exported(source, tmp_path / "bundle", recipe="none"))


def test_one_float_matrix_is_refused(tmp_path: Path) -> None:
    source, grid = variant("qwen2", tmp_path / "hf"), Grid(4, 32, Offset.ZERO_POINT)
    weights = TensorWeights(
        tiny_tensors(source), lambda linear, w: w if linear.name.endswith("1.mlp.down_proj") else lsq(w, grid)
    )
    with pytest.raises(Unsupported, match=r"`/model/layers.1/mlp/down_proj/MatMul`"):
        describe(written(source, tmp_path / "onnx", weights))


def test_another_dialect_than_the_expected_one_is_refused(plain: Path) -> None:
    with pytest.raises(BundleError, match="written in the `onnxruntime` dialect, not in `portable`") as refused:
        describe(plain, "portable")
    assert refused.value.code == "bundle_incompatible"


def test_the_graphs_for_other_runtimes_over_the_same_weights_are_refused(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    shutil.copy(sound / "model_batched.onnx", tmp_path / "model.onnx")
    with pytest.raises(Unsupported, match="GroupQueryAttention"):
        describe(tmp_path)
    shutil.copy(sound / "model_genai.onnx", tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="dialect"):
        describe(tmp_path)


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no model\.onnx"):
        describe(tmp_path)


@pytest.mark.parametrize(("bundle", "at_least"), [("sound", 700), ("plain", 300)])
def test_a_graph_with_a_single_difference_is_never_accepted(
    bundle: str, at_least: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(request.getfixturevalue(bundle), tmp_path, dirs_exist_ok=True)
    passed, count = accepted(tmp_path, {"scale", "local_window_size"})
    assert passed == []
    assert count > at_least


def test_an_invalid_context_length_in_the_metadata_is_refused(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    entry = next(entry for entry in model.metadata_props if entry.key == "edgekit.context_length")
    for value in ("", "0", "-1", "1e3", "٣", "258", "9" * 5000):
        entry.value = value
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BundleError):
            describe(tmp_path)


@pytest.mark.optimum
def test_a_graph_of_optimum_is_refused_whatever_dialect_it_claims(tmp_path: Path) -> None:
    from tests.export.optimum.graphs import checkpoint

    bundle = export_bundle(
        str(checkpoint("gpt2")), load_target("cpu"), tmp_path / "bundle", ExportOptions(exporter="optimum"), silent
    )
    with pytest.raises(BundleError, match="`optimum` dialect"):
        describe(bundle.path)
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "edgekit.dialect":
            entry.value = "onnxruntime"
    (bundle.path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Unsupported):
        describe(bundle.path)
