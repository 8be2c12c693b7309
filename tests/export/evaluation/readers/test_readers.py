"""Artifacts read back: the weights in a bundle are those that its recipe produced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import ExportError, IncompatibleBundleError
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.evaluation.readers import open_artifact
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipes.recipe import recipe_for
from edgekit.export.writers import writer_for
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk
from edgekit.target import load_target
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs
from tests.variants import variant

TARGETS = ("cpu", "m2", "orin")


def written(folder: Path, target: str, decoder: Decoder, weights: TensorWeights, template: Bundle) -> Bundle:
    """An artifact of exactly these weights, with another bundle's manifest."""
    folder.mkdir()
    writer_for(load_target(target))(decoder, weights, folder, lambda _: None)
    return Bundle(folder, template.manifest)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", ["none", "lsq"])
@pytest.mark.parametrize("name", ["qwen2", "qwen2-tied", "llama-biased"])
def test_every_weight_is_read_back_as_the_recipe_made_it(name: str, recipe: str, target: str, tmp_path: Path) -> None:
    checkpoint = variant(name, tmp_path / "model")
    bundle = export_bundle(
        str(checkpoint), load_target(target), tmp_path / "bundle", ExportOptions(recipe=recipe), silent
    )
    decoder, chosen = tiny_decoder(checkpoint), recipe_for(load_target(target), recipe, None)
    weights = TensorWeights(tiny_tensors(checkpoint), lambda linear, w: chosen.apply(linear, w, "F32")[0])
    expected, found = weights.stored(decoder), open_artifact(bundle, decoder)
    # Float16 represents unquantized weights with 11 bits.
    limit = 0 if recipe == "lsq" or target == "cpu" else 2**-11
    for linear in (decoder.embedding, *decoder.linears()):
        values = expected[linear.stored.weight][linear.rows]
        assert np.abs(found.matrix(linear) - values).max() <= max(limit, 1e-6) * np.abs(values).max()
        assert np.array_equal(found.matrix(linear, 16, 48), found.matrix(linear)[16:48])
        if linear.bias:
            bias = expected[linear.stored.bias_name][linear.rows]
            assert np.abs(found.bias(linear) - bias).max() <= (0 if target == "cpu" else 2e-3)
    for norm in decoder.norms():
        assert np.abs(found.norm(norm) - expected[norm]).max() <= 2e-3


@pytest.mark.parametrize(
    ("target", "bits", "offset"),
    [
        *((target, bits, Offset.FLOAT) for target in TARGETS for bits in (4, 8)),
        # MLX always has float offsets, in float16.
        *((target, 4, Offset.ZERO_POINT) for target in ("cpu", "orin")),
    ],
)
@pytest.mark.parametrize("name", ["qwen2", "qwen2-tied"])
def test_every_grid_that_a_target_supports_is_read_back(
    name: str, target: str, bits: int, offset: Offset, tmp_path: Path
) -> None:
    checkpoint = variant(name, tmp_path / "model")
    template = export_bundle(str(checkpoint), load_target(target), tmp_path / "bundle", ExportOptions(), silent)
    decoder, grid = tiny_decoder(checkpoint), Grid(bits, 32, offset, np.float16)
    weights = TensorWeights(tiny_tensors(checkpoint), lambda _, w: lsq(w, grid))
    bundle = written(tmp_path / "artifact", target, decoder, weights, template)
    found = open_artifact(bundle, decoder)
    for linear in (decoder.embedding, *decoder.linears()):
        matrix = weights.matrix(linear)
        assert isinstance(matrix, GroupedTensor)
        # The residual offsets of TensorRT's planes are rounded to float16: 11 bits of about eight steps.
        limit = 8 * matrix.scales.max() * (2**-11 if target == "orin" else 2**-20) * (1 if bits == 4 else 16)
        assert np.abs(found.matrix(linear) - matrix.dequantize()).max() <= limit


def transpose_head(bundle: Bundle, *, graph_too: bool = True) -> None:
    """Store a float output head as an earlier edgekit did: `[hidden, vocab]`, multiplied without a transpose."""
    transposed = False
    for path in sorted(bundle.path.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "lm_head.weight")
        location = {entry.key: entry.value for entry in weight.external_data}
        shape = tuple(weight.dims)
        if not transposed:
            dtype, data = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type), bundle.path / location["location"]
            values = np.memmap(data, dtype, "r+", int(location["offset"]), shape)
            across = values.T.copy()
            values.reshape(-1)[:] = across.reshape(-1)
            values.flush()
            transposed = True
        weight.dims[:] = shape[::-1]
        if graph_too:
            node = next(node for node in model.graph.node if node.name == "/lm_head/Transpose")
            product = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
            product.input[1] = weight.name
            model.graph.node.remove(node)
        path.write_bytes(model.SerializeToString())


def logits(bundle: Bundle) -> np.ndarray:
    artifact = bundle.manifest.artifact
    runner = open_runner(bundle.path, artifact.kind, artifact.dialect, context_length=64, threads=1)
    return runner.run([Chunk(0, [3, 1, 4, 1, 5, 9, 2, 6], "all")])[0]


# A matrix with as many outputs as inputs looks the same in either order.
@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize(
    ("target", "dialect"), [("cpu", None), ("orin", None), pytest.param("rtx", "native", marks=native_runs)]
)
def test_a_float_head_is_read_as_the_graph_reads_it_whichever_way_it_was_stored(
    target: str, dialect: str | None, hidden: int, tmp_path: Path
) -> None:
    checkpoint = variant("qwen2", tmp_path / "model", hidden=hidden, vocab=512)
    profile, options = load_target(target, dialect=dialect), ExportOptions(recipe="none")
    bundle = export_bundle(str(checkpoint), profile, tmp_path / "bundle", options, silent)
    decoder = tiny_decoder(checkpoint)
    # Copied: the matrix may be a view of the file that is about to change.
    head, before = open_artifact(bundle, decoder).matrix(decoder.head).copy(), logits(bundle)
    transpose_head(bundle)
    # The runner shows that the graph still computes the model.
    np.testing.assert_allclose(logits(bundle), before, atol=1e-3)
    np.testing.assert_array_equal(open_artifact(bundle, decoder).matrix(decoder.head), head)
    np.testing.assert_array_equal(open_artifact(bundle, decoder).matrix(decoder.head, 16, 48), head[16:48])


@pytest.mark.parametrize("target", ["cpu", "orin"])
def test_a_matrix_that_is_not_shaped_as_the_model_says_is_refused(target: str, tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    options = ExportOptions(recipe="none")
    bundle = export_bundle(str(checkpoint), load_target(target), tmp_path / "bundle", options, silent)
    transpose_head(bundle, graph_too=False)
    decoder = tiny_decoder(checkpoint)
    with pytest.raises(ExportError, match=r"`lm_head\.weight` is stored as \(128, 512\)"):
        open_artifact(bundle, decoder).matrix(decoder.head, 0, 16)


def test_an_artifact_that_has_no_reader_is_refused(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    bundle = export_bundle(str(checkpoint), load_target("cpu"), tmp_path / "bundle", ExportOptions(), silent)
    manifest = bundle.path / "manifest.json"
    artifact = replace(bundle.manifest.artifact, dialect="other")
    manifest.write_text(replace(bundle.manifest, artifact=artifact).to_json(), encoding="utf-8")
    with pytest.raises(IncompatibleBundleError, match="artifact `onnx other`"):
        open_artifact(open_bundle(bundle.path), tiny_decoder(checkpoint))


def test_a_data_file_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    bundle = export_bundle(str(checkpoint), load_target("cpu"), tmp_path / "bundle", ExportOptions(), silent)
    decoder, data = tiny_decoder(checkpoint), bundle.path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100_000])
    with pytest.raises(ExportError, match=r"does not match model\.onnx for `lm_head\.weight"):
        open_artifact(bundle, decoder).matrix(decoder.head)
