"""ONNX files are read as the onnx package reads them; damaged ones are rejected with the name of the fault."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BundleError, EdgekitError
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.cpu.onnx_reader.match_model import describe
from edgekit.runners.cpu.onnx_reader.onnx_file import read_graph
from edgekit.runners.cpu.onnx_reader.onnx_proto import UnreadAttribute
from edgekit.runners.cpu.onnx_reader.protobuf import Message
from tests.export.checkpoints.fuzzing import bounds
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.variants import variant

INTEGERS = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module", params=["onnxruntime", "portable", "native"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of each dialect."""
    place = tmp_path_factory.mktemp("sound")
    sizes = {"layers": 1, "hidden": 64, "intermediate": 32, "heads": 1, "kv_heads": 1, "vocab": 300, "max_position": 8}
    source = variant("llama-biased", place / "hf", **sizes)
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 32, Offset.FLOAT)))
    (place / "onnx").mkdir()
    OnnxWriter(request.param)(tiny_decoder(source), weights, place / "onnx", lambda _: None)
    return place / "onnx"


def model_of(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    return helper.make_model(onnx.GraphProto(name="g", initializer=tensors, node=nodes))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(fields: dict[str, str] | None = None, dims: tuple[int, ...] = (4,)) -> TensorProto:
    """A float32 weight in the data file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "data", "offset": "0", "length": "16"} | (fields or {})).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_nodes_and_weights_equal_those_that_onnx_reads(sound: Path) -> None:
    graph, expected = read_graph(sound / "model.onnx"), onnx.load(sound / "model.onnx")
    assert [(n.op_type, n.domain, n.name, list(n.inputs), list(n.outputs)) for n in graph.nodes] == [
        (n.op_type, n.domain, n.name, list(n.input), list(n.output)) for n in expected.graph.node
    ]
    for node, other in zip(graph.nodes, expected.graph.node, strict=True):
        values = {a.name: helper.get_attribute_value(a) for a in other.attribute}
        assert dict(node.attributes) == {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    assert list(graph.tensors) == [tensor.name for tensor in expected.graph.initializer]
    for tensor in expected.graph.initializer:
        if tensor.data_type == TensorProto.INT4:
            assert graph.int4(tensor.name).tobytes() == tensor.raw_data
            continue
        array = graph.array(tensor.name)
        np.testing.assert_array_equal(array, numpy_helper.to_array(tensor), strict=True)
        assert not array.flags.writeable
    assert [value.name for value in graph.inputs] == [value.name for value in expected.graph.input]
    assert graph.metadata == {entry.key: entry.value for entry in expected.metadata_props}
    assert graph.unread_parts == ()


@given(st.lists(INTEGERS), st.lists(st.floats(width=32, allow_nan=False)), INTEGERS, st.text(), st.floats(width=32))
def test_attributes_are_those_that_were_written(
    integers: list[int], floats: list[float], integer: int, text: str, number: float
) -> None:
    attributes = {"i": integer, "s": text, "f": number, "many": floats, "ints": integers}
    written = [
        helper.make_attribute(k, v, attr_type=7 if k == "ints" else 6 if k == "many" else None)
        for k, v in attributes.items()
    ]
    node = Message(onnx.NodeProto(op_type="X", attribute=written).SerializeToString())
    from edgekit.runners.cpu.onnx_reader.onnx_proto import _node

    found = _node(node).attributes
    assert (found["i"], found["s"], found["ints"]) == (integer, text, tuple(integers))
    assert struct.pack("<f", found["f"]) == struct.pack("<f", number)
    assert found["many"] == UnreadAttribute(6)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.uint8, np.int8])
@pytest.mark.parametrize("raw", [True, False])
def test_inline_weights_are_read_from_bytes_and_from_fields(dtype: type, raw: bool, tmp_path: Path) -> None:
    values: npt.NDArray[Any] = np.array([[0, 1, -7], [100, 2, 127]]).astype(dtype)
    stored = values.tobytes() if raw else values.reshape(-1)
    tensor = helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(values.dtype), (2, 3), stored, raw=raw)
    array = read_graph(saved(tmp_path, model_of(tensor))).array("w")
    np.testing.assert_array_equal(array, values, strict=True)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "../data"}, "outside the bundle"),
        ({"location": "/etc/passwd"}, "outside the bundle"),
        ({"location": "sub/data"}, "outside the bundle"),
        ({"location": "..\\data"}, "outside the bundle"),
        ({"location": ".."}, "outside the bundle"),
        ({"location": ""}, "outside the bundle"),
        ({"location": "da\0ta"}, "outside the bundle"),
        ({"location": "link"}, "it is a link"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "folder"}, "not a regular file"),
        ({"location": "absent"}, "No such file"),
        ({"location": "x" * 5000}, "outside the bundle"),
        ({"location": "empty"}, "cannot be mapped"),
        ({"offset": "4"}, "beyond the end"),
        ({"offset": "9" * 18}, "not aligned|beyond the end"),
        ({"offset": "9" * 400}, "as its offset"),
        ({"offset": "-16"}, "as its offset"),
        ({"offset": "1"}, "not aligned"),
        ({"length": "12"}, "12 bytes; its shape"),
        ({"length": "١٦"}, "as its length"),
        ({"length": " 16"}, "as its length"),
    ],
)
def test_an_invalid_data_location_is_refused(fields: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(16))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("data")
    os.mkfifo(tmp_path / "pipe")
    graph = read_graph(saved(tmp_path, model_of(external())))
    assert graph.array("w").tolist() == [0, 0, 0, 0]
    with pytest.raises(BundleError, match=message):
        read_graph(saved(tmp_path, model_of(external(fields)))).array("w")


@pytest.mark.parametrize(
    "dims", [(2**62, 4), (2**32, 2**32), (2**63 - 1,) * 8, (0, 2**63 - 1), (-4,), (1,) * 9, (5,), (3,)]
)
@pytest.mark.parametrize("inline", [True, False])
def test_a_shape_that_does_not_match_its_bytes_is_refused(dims: tuple[int, ...], inline: bool, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(16))
    tensor = external(dims=dims)
    if inline:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
    with bounds(), pytest.raises(BundleError):
        read_graph(saved(tmp_path, model_of(tensor))).array("w")


def test_an_unknown_type_or_an_absent_weight_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.STRING, dims=(1,), string_data=[b"x"])
    graph = read_graph(saved(tmp_path, model_of(tensor)))
    with pytest.raises(BundleError, match="a dtype that edgekit does not support"):
        graph.array("w")
    with pytest.raises(BundleError, match="no weight `v`"):
        graph.array("v")
    with pytest.raises(BundleError, match="duplicate weight `w`"):
        read_graph(saved(tmp_path, model_of(tensor, tensor)))
    wide = helper.make_tensor("w", TensorProto.INT32, (1,), [1])
    wide.data_type = TensorProto.UINT8
    wide.int32_data[0] = 300
    with pytest.raises(BundleError, match="out of range for its dtype"):
        read_graph(saved(tmp_path, model_of(wide))).array("w")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    out, key, length = bytearray(), number << 3 | 2, len(content)
    for value in (key, length):
        rest = value
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        out.append(rest)
    return bytes(out) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x3a",
        b"\x3a\x05ab",
        b"\x3a" + b"\xff" * 9 + b"\x01",
        b"\x3a" + b"\x80" * 10 + b"\x01",
        b"\xff" * 11,
        b"\x3b\x3c",
        b"\x00\x00",
        b"\x38\x01",
        b"\x3d\x01\x01",
        field(7, b"") * 2,
        field(7, field(1, field(4, b"\xff\xfe"))),
        field(7, field(1, b"\x0d\x01\x01\x01\x01")),
        field(7, field(5, field(8, b"w") + b"\x09" + bytes(8))),
        field(7, field(5, b"")),
        field(7, field(5, field(8, b"w") + field(1, b"\x80"))),
        field(7, field(5, field(8, b"w") + field(3, b""))),
    ],
)
def test_bytes_that_are_not_a_model_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError):
        read_graph(tmp_path / "model.onnx")


def test_a_file_with_too_many_fields_or_bytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with bounds():
        for inner in (b"\x0a\x00", b"\x2a\x00", b"\x5a\x00", field(1, b"\x0a\x00" * 1000)):
            path.write_bytes(field(7, inner * (8_000_000 // len(inner))))
            with pytest.raises(BundleError, match="too many fields"):
                read_graph(path)
        path.write_bytes(field(7, field(5, field(8, b"w") + b"\x10\x07" + field(7, b"\x01" * 8_000_000))))
        with pytest.raises(BundleError, match="too many fields"):
            read_graph(path)
        with path.open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(BundleError, match="too large"):
            read_graph(path)


def test_deep_nesting_is_not_followed(tmp_path: Path) -> None:
    graph = b""
    for _ in range(1000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then") + b"\xa0\x01\x05" + field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(field(7, graph))
    (node,) = read_graph(tmp_path / "model.onnx").nodes
    assert node.attributes == {"then": UnreadAttribute(5)}


def test_parts_that_may_change_what_is_computed_are_named(tmp_path: Path) -> None:
    model = model_of(nodes=(onnx.NodeProto(op_type="X", overload="y"),))
    model.functions.add(name="f")
    model.training_info.add()
    model.graph.sparse_initializer.add()
    graph = read_graph(saved(tmp_path, model))
    assert graph.unread_parts == ("training", "functions", "sparse weights", "overloaded operators")


@pytest.mark.parametrize("count", [1, 6, 7])
@pytest.mark.parametrize("where", ["in the graph", "in the data file"])
def test_int4_weights_are_read_as_bytes_of_two(where: str, count: int, tmp_path: Path) -> None:
    packed = bytes(range(0x21, 0x21 + (count + 1) // 2))
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=(count, 1))
    if where == "in the graph":
        tensor.raw_data = packed
    else:
        (tmp_path / "data").write_bytes(packed)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "data", "offset": "0", "length": str(len(packed))}.items():
            tensor.external_data.add(key=key, value=value)
    graph = read_graph(saved(tmp_path, model_of(tensor)))
    assert graph.int4("w").tobytes() == packed
    assert not graph.int4("w").flags.writeable
    tensor.dims[0] += 2
    with pytest.raises(BundleError, match=r"`w` has \d bytes"):
        read_graph(saved(tmp_path, model_of(tensor))).int4("w")


@pytest.mark.parametrize("dims", [(2**62,), (2**31, 2**31)])
def test_an_impossibly_large_int4_weight_is_refused(dims: tuple[int, ...], tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=dims, raw_data=b"1")
    with pytest.raises(BundleError, match="impossibly large"):
        read_graph(saved(tmp_path, model_of(tensor))).int4("w")
    tensor.data_type = TensorProto.UINT8
    with pytest.raises(BundleError, match="no INT4 weight"):
        read_graph(saved(tmp_path, model_of(tensor))).int4("w")


def attempt(folder: Path) -> str:
    """Describe a bundle and read all its weights."""
    try:
        model = describe(folder)
    except EdgekitError as error:
        assert error.message.isprintable()  # noqa: PT017  that it is raised is not the point
        assert len(error.message) < 1000  # noqa: PT017
        return "refused"
    for matrix in (model.embedding, model.head, *(m for layer in model.layers for m in (*layer.qkv, layer.down))):
        out, groups = matrix.scales.shape
        assert (out, groups * matrix.group_size) == matrix.shape
        assert matrix.codes.size == -(-out * matrix.shape[1] * matrix.bits // 8)
        assert matrix.factors()[0].shape == (out, groups)
        matrix.codes.sum()
    return "read"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_graph_is_read_or_refused(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzzed-{sound.parent.name}"
    folder.mkdir(exist_ok=True)
    if not (folder / "model.onnx.data").exists():
        (folder / "model.onnx.data").write_bytes((sound / "model.onnx.data").read_bytes())
    content = bytearray((sound / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["set", "set", "set", "cut", "insert", "delete", "repeat"])):
            case "set":
                content[at : at + 1] = bytes([data.draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))])
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=12))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 40))]
            case _:
                content[at:at] = content[at : at + data.draw(st.integers(1, 400))]
    (folder / "model.onnx").write_bytes(content)
    with bounds():
        attempt(folder)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    try:
        read_graph(path)
    except BundleError:
        return


def test_a_data_file_cut_anywhere_is_refused(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((sound / "model.onnx").read_bytes())
    full = (sound / "model.onnx.data").read_bytes()
    for size in (0, 1, 4096, len(full) // 2, len(full) - 1):
        (tmp_path / "model.onnx.data").write_bytes(full[:size])
        with pytest.raises(BundleError):
            describe(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(full)
    assert attempt(tmp_path) == "read"
