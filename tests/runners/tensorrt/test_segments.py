"""Segments run one after another are compared with the whole graph, in onnxruntime, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from edgekit.errors import BundleError, ConfigError, EdgekitError, RunnerError
from edgekit.export.quantization.grid import Offset
from edgekit.profile import Dialect
from edgekit.runners.masks import PADDING, Masks
from edgekit.runners.tensorrt.graph_file import read_graph_file, with_positions
from edgekit.runners.tensorrt.segments import Chain, Segment
from tests.ort_version import RUNS_NATIVE
from tests.runners.tensorrt.graphs import write_graph
from tests.variants import VARIANTS

Arrays = dict[str, npt.NDArray[Any]]

CAPACITY = 48
TOKENS = np.random.default_rng(5).integers(0, 512, 37)
BOTH = pytest.mark.parametrize("dialect", ["portable", "native"])


def chain_of(folder: Path, dialect: Dialect) -> Chain:
    graph = with_positions(read_graph_file(folder / "model.onnx"), CAPACITY)
    return Chain(graph, CAPACITY if dialect == "native" else None)


def session(model: bytes | Path, folder: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # What onnxruntime fuses differs at the ends of a segment, and with it the last bits.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, bytes):
        file = folder / "segment.onnx"
        file.write_bytes(model)
        model = file
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def feeds(folder: Path, dialect: Dialect, length: int, count: int, cache: Arrays) -> Arrays:
    """The inputs of a step of `count` tokens behind `length` others, whose rows `cache` holds."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    names = [value.name for value in model.graph.input]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if dialect == "native":
        columns = np.where(np.arange(CAPACITY) < length + count, np.arange(CAPACITY), PADDING)
    else:
        padded = -(-length // 8) * 8
        columns = np.concatenate(
            [np.where(np.arange(padded) < length, np.arange(padded), PADDING), length + np.arange(count)]
        )
    found: Arrays = {
        "input_ids": TOKENS[None, length : length + count],
        "position_ids": np.arange(length, length + count)[None],
        "logits_index": np.array([count - 1]),
        **Masks.of_graph(names, metadata, np.float16).step(length, count, columns),
    }
    if dialect == "native":
        found["write_indices"] = np.array([length])
    for value in model.graph.input:
        if value.name.startswith("past_"):
            _, heads, *_, size = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
            rows = CAPACITY if dialect == "native" else padded
            past = np.zeros((1, heads, rows, size), np.float16)
            past[:, :, :length] = cache.get(value.name, past)[:, :, :length]
            found[value.name] = past if dialect == "native" else past.reshape(1, heads, -1, 8, size)
    return found


def test_a_segment_holds_the_rope_tables_of_its_context_only(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, "gemma3_text", max_position=4096)
    whole = read_graph_file(folder / "model.onnx")
    segment = Chain(with_positions(whole, 40)).cut(3)[1]
    tables = {one.name: one for one in onnx.load_from_string(segment.model).graph.initializer if "_cache" in one.name}
    assert tables
    for name, table in tables.items():
        rows, width = whole.model.tensors[name].shape
        assert (rows, tuple(table.dims)) == (4096, (40, width))
        assert {entry.key: entry.value for entry in table.external_data}["length"] == str(40 * width * 2)
    assert segment.graph_bytes < Chain(whole).cut(3)[1].graph_bytes
    # A longer context than the model's changes nothing.
    assert with_positions(whole, 5000).model.tensors == whole.model.tensors


def run(session: Any, values: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_segments(sessions: Sequence[Any], values: Arrays) -> Arrays:
    outputs: Arrays = {}
    for one in sessions:
        outputs |= run(one, {**values, **outputs})
    return outputs


def check(folder: Path, dialect: Dialect, counts: Sequence[int]) -> None:
    if dialect == "native" and not RUNS_NATIVE:
        pytest.skip("onnxruntime before 1.24 does not read opset 24")
    whole = session(folder / "model.onnx", folder)
    outputs = [value.name for value in whole.get_outputs()]
    chain = chain_of(folder, dialect)
    for count in counts:
        parts = [session(segment.model, folder) for segment in chain.cut(count)]
        cache: Arrays = {}
        length = 0
        for tokens in (20, 1, 9):
            values = feeds(folder, dialect, length, tokens, cache)
            expected, got = run(whole, values), run_segments(parts, values)
            for name in outputs:
                np.testing.assert_array_equal(got[name], expected[name], err_msg=f"{count} segments: {name}")
            for name in outputs:
                if not name.startswith("present"):
                    continue
                past = name.replace("present", "past_key_values")
                rows = expected[name][:, :, length : length + tokens] if dialect == "native" else expected[name]
                old = cache.get(past, rows[:, :, :0])
                cache[past] = np.concatenate([old[:, :, :length], rows], axis=2)
                cache[past] = np.pad(cache[past], ((0, 0), (0, 0), (0, CAPACITY - cache[past].shape[2]), (0, 0)))
            length += tokens


@pytest.mark.parametrize("name", VARIANTS)
@BOTH
def test_segments_give_the_whole_graphs_logits_and_kv_cache(tmp_path: Path, name: str, dialect: Dialect) -> None:
    folder = write_graph(tmp_path, name, dialect=dialect)
    # Two of several units each, and each unit alone: the embedding, every layer, the head.
    check(folder, dialect, (1, 2, len(chain_of(folder, dialect))))


@BOTH
@pytest.mark.parametrize(("offset", "bits"), [(None, 4), (Offset.FLOAT, 4), (Offset.SYMMETRIC, 8)])
def test_segments_of_other_grids_do_too(tmp_path: Path, dialect: Dialect, offset: Offset | None, bits: int) -> None:
    folder = write_graph(tmp_path, "qwen2-tied", dialect=dialect, offset=offset, bits=bits)
    check(folder, dialect, (3,))


@BOTH
def test_a_model_of_one_layer_is_cut_too(tmp_path: Path, dialect: Dialect) -> None:
    check(write_graph(tmp_path, dialect=dialect, layers=1), dialect, (3,))


def layers(segments: Sequence[Segment]) -> list[tuple[int | None, int | None]]:
    return [(segment.first_layer, segment.last_layer) for segment in segments]


def test_every_layer_is_in_one_segment_and_the_largest_segment_is_as_small_as_can_be(tmp_path: Path) -> None:
    chain = chain_of(write_graph(tmp_path, layers=6), "portable")
    assert len(chain) == 8
    assert layers(chain.cut(8)) == [(None, None), *((layer, layer) for layer in range(6)), (None, None)]
    assert layers(chain.cut(1)) == [(0, 5)]
    sizes = [max(segment.graph_bytes for segment in chain.cut(count)) for count in range(1, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1]


@BOTH
def test_a_segment_has_only_its_own_layers_caches_and_weights(tmp_path: Path, dialect: Dialect) -> None:
    first, second, third, *_ = segments = chain_of(write_graph(tmp_path, dialect=dialect), dialect).cut(5)
    assert {value.name for value in second.inputs if "past" in value.name} == {
        "past_key_values.0.key",
        "past_key_values.0.value",
    }
    assert third.boundary == "/model/layers.0/mlp/residual/Add/output_0"
    assert [value.name for value in third.outputs] == [
        "present.1.key",
        "present.1.value",
        "/model/layers.1/mlp/residual/Add/output_0",
    ]
    assert "input_ids" not in {value.name for value in third.inputs}
    assert first.boundary is None
    assert [value.name for value in first.inputs] == ["input_ids"]
    assert len(second.products) == 7
    assert third.caches.keys() == {"past_key_values.1.key", "past_key_values.1.value"}
    assert {*third.caches.values()} == ({"present.1.key", "present.1.value"} if dialect == "native" else {None})
    assert [value.name for value in segments[-1].inputs] == ["/model/layers.2/mlp/residual/Add/output_0"]


def test_a_segment_holds_no_weights_itself(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, hidden=512, heads=8, intermediate=1024)
    for segment in chain_of(folder, "portable").cut(2):
        assert segment.graph_bytes > 500_000
        assert len(segment.model) < 60_000
        onnx.load_model_from_string(segment.model)


def test_more_segments_than_units_are_refused_with_the_most(tmp_path: Path) -> None:
    chain = chain_of(write_graph(tmp_path), "portable")
    with pytest.raises(ConfigError, match="at most 5 segments, not 6"):
        chain.cut(6)
    with pytest.raises(ConfigError, match="not 0"):
        chain.cut(0)


@contextmanager
def changed_node(folder: Path, name: str) -> Iterator[onnx.NodeProto]:
    """Give a node of the graph to change, and write the graph."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    yield next(node for node in model.graph.node if node.name == name)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_graph_that_is_not_a_chain_of_layers_is_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path)
    with changed_node(folder, "/model/layers.1/mlp/residual/Add") as node:
        node.name = "renamed"
    with pytest.raises(RunnerError, match=r"no node `/model/layers\.1/mlp/residual/Add`"):
        chain_of(folder, "portable")


def test_a_layer_that_reads_what_an_earlier_one_put_out_is_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path)
    with changed_node(folder, "/model/layers.2/attn/residual/Add") as node:
        node.input[0] = "/model/layers.0/mlp/residual/Add/output_0"
    with pytest.raises(RunnerError, match="reads what was computed before the one in front of it"):
        chain_of(folder, "portable").cut(5)


def test_a_graph_without_logits_or_a_caches_rows_is_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for index, name in ((0, "logits"), (-1, "present.2.value")):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        del changed.graph.output[index]
        (folder / "model.onnx").write_bytes(changed.SerializeToString())
        with pytest.raises(RunnerError, match=f"has no output `{name}`"):
            chain_of(folder, "portable")


def test_a_layer_that_reads_anothers_cache_is_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path)
    with changed_node(folder, "/model/layers.2/attn/past_key/Reshape") as node:
        node.input[0] = "past_key_values.0.key"
    with pytest.raises(RunnerError, match="reads the KV cache of another layer"):
        chain_of(folder, "portable").cut(5)


def test_a_damaged_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, layers=1)
    data, draw = (folder / "model.onnx").read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for at in draw.integers(0, len(data), 4):
            damaged[at] = draw.integers(0, 256)
        (folder / "model.onnx").write_bytes(damaged)
        try:
            for segment in chain_of(folder, "portable").cut(3):
                assert segment.caches is not None
        except EdgekitError:
            refused += 1
    assert refused > 20


def test_weights_outside_the_bundle_are_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../hf/model.safetensors"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="does not exist"):
        read_graph_file(folder / "model.onnx")
