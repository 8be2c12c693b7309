"""Handmade graphs, of kinds that the exporter writes for other models or settings, and of other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.optimum.int4_pass import quantize_graph
from edgekit.export.optimum.source import Source
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.recipes.recipe import recipe_for
from edgekit.runners.base import Chunk
from edgekit.runners.optimum import OptimumRunner
from edgekit.target import load_target

FloatArray = npt.NDArray[np.float32]

VOCAB, HIDDEN = 96, 64
RNG = np.random.default_rng(23)
TABLE = RNG.standard_normal((VOCAB, HIDDEN), dtype=np.float32)
FIRST = RNG.standard_normal((HIDDEN, HIDDEN), dtype=np.float32)
BIAS = RNG.standard_normal(HIDDEN, dtype=np.float32)
RECIPE = recipe_for(load_target("cpu"), "lsq", None)


def model(
    folder: Path,
    nodes: Sequence[NodeProto],
    *,
    initializers: dict[str, FloatArray] | None = None,
    inputs: Sequence[str] = (),
    cache: Sequence[int | str] = ("batch", 1, "past", HIDDEN),
) -> Path:
    """Write a graph that embeds tokens as `x` and appends `x` to the cache; `nodes` compute `logits` from it."""
    around = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="/embed/Gather"),
        helper.make_node("Unsqueeze", ["x", "one"], ["row"], name="/cache/Unsqueeze"),
        helper.make_node("Concat", ["past_key_values.0.key", "row"], ["present.0.key"], name="/cache/Concat", axis=2),
    ]
    values = {"table": TABLE, "first": FIRST, "bias": BIAS, **(initializers or {})}
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    tensors.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    graph = helper.make_graph(
        [*around, *nodes],
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, list(cache)),
            *(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB]),
            helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["batch", 1, "total", HIDDEN]),
        ],
        tensors,
    )
    folder.mkdir(exist_ok=True)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=100)
    return folder


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"/{output}/{op}", **attributes)


def quantized(folder: Path) -> dict[str, int]:
    (folder / "out").mkdir()
    return dict(quantize_graph(Source(folder), folder / "out", RECIPE, context_length=16, accuracy_level=1))


def run(folder: Path, tokens: Sequence[int]) -> FloatArray:
    runner = OptimumRunner(folder / "out", threads=1)
    rows = [runner.run([Chunk(0, tokens[:3], "all")])[0].copy(), runner.run([Chunk(0, tokens[3:], "all")])[0].copy()]
    assert runner.length(0) == len(tokens)
    runner.close()
    return np.concatenate(rows)


def on_grid(matrix: FloatArray) -> FloatArray:
    """A matrix `[out, in]` as the recipe leaves it."""
    tensor, _ = RECIPE.apply(Linear("any", matrix.shape[1], matrix.shape[0]), matrix, "F32")
    assert isinstance(tensor, GroupedTensor)
    return tensor.dequantize()


def names(folder: Path) -> tuple[list[str], set[str]]:
    graph = onnx.load(folder / "out" / "model.onnx", load_external_data=False).graph
    return [item.op_type for item in graph.node], {tensor.name for tensor in graph.initializer}


def test_a_head_that_reads_the_table_through_transpose_and_identity_shares_its_codes(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["table"], "same"),
        node("Transpose", ["same"], "transposed", perm=[1, 0]),
        node("MatMul", ["x", "transposed"], "logits"),
    ]
    assert quantized(model(tmp_path, nodes)) == {"lsq 4-bit, group 32": 1}
    operators, initializers = names(tmp_path)
    assert not {"Identity", "Transpose", "MatMul"} & set(operators)
    assert not {"table", "first", "bias"} & initializers
    table = on_grid(TABLE)
    np.testing.assert_allclose(run(tmp_path, [5, 6, 7, 8]), table[[5, 6, 7, 8]] @ table.T, atol=1e-3)


@pytest.mark.parametrize(("width", "needed"), [(96, "1.27"), (128, None)])
def test_a_table_with_an_odd_number_of_groups_requires_an_onnxruntime_with_correct_lookups(
    width: int, needed: str | None, tmp_path: Path
) -> None:
    table = RNG.standard_normal((VOCAB, width), dtype=np.float32)
    values = {"table": table, "head": np.ascontiguousarray(table.T)}
    quantized(model(tmp_path, [node("MatMul", ["x", "head"], "logits")], initializers=values))
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {prop.key: prop.value for prop in written.metadata_props}.get("edgekit.onnxruntime") == needed


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_takes_its_bias_along(transposed: int, tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "flat"], "rows"),
        node("Gemm", ["rows", "first", "bias"], "y", transB=transposed),
        node("Reshape", ["y", "sequence"], "h"),
        node("MatMul", ["h", "head"], "logits"),
    ]
    shapes = {"flat": np.array([-1, HIDDEN]), "sequence": np.array([1, -1, HIDDEN])}
    model(tmp_path, nodes, initializers={**shapes, "head": np.ascontiguousarray(TABLE.T[:, ::-1])})
    assert quantized(tmp_path) == {"lsq 4-bit, group 32": 3}
    first = on_grid(FIRST if transposed else np.ascontiguousarray(FIRST.T))
    hidden = on_grid(TABLE)[[5, 6, 7, 8]] @ first.T + BIAS
    np.testing.assert_allclose(
        run(tmp_path, [5, 6, 7, 8]), hidden @ on_grid(np.ascontiguousarray(TABLE[::-1])).T, atol=2e-3
    )


@pytest.mark.parametrize(
    "product",
    [
        node("Gemm", ["rows", "first", "bias"], "y", alpha=0.5),
        node("Gemm", ["rows", "first", "bias"], "y", beta=2.0),
        node("Gemm", ["rows", "first", "scalar"], "y"),
    ],
    ids=["alpha", "beta", "broadcast bias"],
)
def test_a_product_that_is_more_than_a_matrix_and_a_bias_is_left_alone(product: NodeProto, tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "flat"], "rows"),
        product,
        node("Reshape", ["y", "sequence"], "h"),
        node("MatMul", ["h", "head"], "logits"),
    ]
    values = {
        "flat": np.array([-1, HIDDEN]),
        "sequence": np.array([1, -1, HIDDEN]),
        "scalar": np.array([0.5], np.float32),
        "head": np.ascontiguousarray(TABLE.T),
    }
    quantized(model(tmp_path, nodes, initializers=values))
    assert "Gemm" in names(tmp_path)[0]
    scale = next((entry.f for entry in product.attribute if entry.name == "alpha"), 1.0)
    shift = next((entry.f for entry in product.attribute if entry.name == "beta"), 1.0)
    bias = values["scalar"] if product.input[2] == "scalar" else BIAS
    table = on_grid(TABLE)
    hidden = scale * (table[[5, 6, 7, 8]] @ FIRST) + shift * bias
    np.testing.assert_allclose(run(tmp_path, [5, 6, 7, 8]), hidden @ table.T, atol=2e-3)


def test_only_the_requested_rows_reach_the_head_also_through_a_softcap(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "head"], "raw"),
        node("Div", ["raw", "cap"], "small"),
        node("Tanh", ["small"], "capped"),
        node("Mul", ["capped", "cap"], "logits"),
    ]
    values = {"head": np.ascontiguousarray(TABLE.T), "cap": np.array(30, np.float32)}
    quantized(model(tmp_path, nodes, initializers=values))
    table = on_grid(TABLE)
    expected = 30 * np.tanh(table[[5, 6, 7, 8]] @ table.T / 30)
    runner = OptimumRunner(tmp_path / "out", threads=1)
    last = runner.run([Chunk(0, [5, 6, 7, 8])])[0]
    assert last.shape == (1, VOCAB)
    np.testing.assert_allclose(last[0], expected[-1], atol=1e-3)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert "logits_index" in {value.name for value in graph.input}


def test_logits_that_mix_positions_are_computed_for_all_of_them(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "head"], "raw"),
        node("CumSum", ["raw", "one"], "logits"),
    ]
    quantized(model(tmp_path, nodes, initializers={"head": np.ascontiguousarray(TABLE.T)}))
    table = on_grid(TABLE)
    expected = np.cumsum(table[[5, 6, 7, 8]] @ table.T, axis=0)
    runner = OptimumRunner(tmp_path / "out", threads=1)
    np.testing.assert_allclose(runner.run([Chunk(0, [5, 6, 7, 8])])[0][0], expected[-1], atol=1e-3)
    runner.truncate(0, 0)
    assert runner.run([Chunk(0, [5, 6, 7, 8], "none")])[0].shape == (0, VOCAB)


def test_a_table_of_positions_is_left_alone_however_long_it_is(tmp_path: Path) -> None:
    positions = RNG.standard_normal((4 * VOCAB, HIDDEN), dtype=np.float32)
    nodes = [
        node("Gather", ["positions", "position_ids"], "embedded"),
        node("Add", ["x", "embedded"], "h"),
        node("MatMul", ["h", "head"], "logits"),
    ]
    values = {"positions": positions, "head": np.ascontiguousarray(TABLE.T)}
    model(tmp_path, nodes, initializers=values, inputs=["position_ids"])
    assert quantized(tmp_path) == {"lsq 4-bit, group 32": 1}
    table = on_grid(TABLE)
    expected = (table[[5, 6, 7, 8]] + positions[:4]) @ table.T
    np.testing.assert_allclose(run(tmp_path, [5, 6, 7, 8]), expected, atol=1e-3)


def test_an_input_that_cannot_be_filled_is_named(tmp_path: Path) -> None:
    model(tmp_path, [node("MatMul", ["x", "first"], "logits")], inputs=["pixel_values"])
    with pytest.raises(ExportError, match="`pixel_values`, which edgekit cannot fill"):
        Source(tmp_path)


@pytest.mark.parametrize("cache", [("batch", "past", HIDDEN), ("batch", "heads", "past", HIDDEN), (1, 1, "p", "d")])
def test_a_cache_of_another_kind_is_named_with_its_shape(cache: tuple[int | str, ...], tmp_path: Path) -> None:
    model(tmp_path, [node("MatMul", ["x", "first"], "logits")], cache=cache)
    with pytest.raises(ExportError, match=r"cache `past_key_values\.0\.key` with shape"):
        Source(tmp_path)


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    model(tmp_path / "graph", [node("MatMul", ["x", "first"], "y"), node("Identity", ["y"], "logits")])
    proto = onnx.load(tmp_path / "graph" / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    (tmp_path / "graph" / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "graph" / "weights").rename(tmp_path / "weights")
    with pytest.raises(ExportError, match="outside its folder"):
        Source(tmp_path / "graph").read("table")
