"""Graphs with a single difference, none of which a reader may accept."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx

from edgekit.errors import EdgekitError
from edgekit.runners.cpu.onnx_reader.match_model import describe

__all__ = ["accepted"]


def accepted(folder: Path, free: Collection[str] = ()) -> tuple[list[str], int]:
    """Return the changes with which a graph is accepted, and how many were tried; the graph itself must be accepted."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    count, passed = 0, []
    for what in _changes(model, free):
        count += 1
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        try:
            describe(folder)
        except EdgekitError:
            continue
        passed.append(what)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    describe(folder)
    return passed, count


def _changes(model: onnx.ModelProto, free: Collection[str]) -> Iterator[str]:  # noqa: PLR0912  a list of changes
    """Apply one change to the graph after the other, undoing each.

    Args:
        model: The graph.
        free: Attributes that may have any value.
    """
    before = model.SerializeToString()

    def restore() -> None:
        model.ParseFromString(before)

    for at in range(len(model.graph.node)):
        name = model.graph.node[at].name
        del model.graph.node[at]
        yield f"{name} removed"
        restore()
        model.graph.node[at].op_type += "X"
        yield f"{name} another operator"
        restore()
        model.graph.node[at].domain = "ai.other"
        yield f"{name} another domain"
        restore()
        model.graph.node[at].attribute.append(onnx.helper.make_attribute("softcap", 1.0))
        yield f"{name} one attribute more"
        restore()
        model.graph.node[at].input.append("input_ids")
        yield f"{name} one input more"
        restore()
        inputs = model.graph.node[at].input
        if len(inputs) > 1 and inputs[0] != inputs[1]:
            inputs[0], inputs[1] = inputs[1], inputs[0]
            yield f"{name} inputs exchanged"
            restore()
        for index, attribute in enumerate(model.graph.node[at].attribute):
            if attribute.name in free:
                continue
            if attribute.type == onnx.AttributeProto.FLOAT:
                model.graph.node[at].attribute[index].f += 0.5
            elif attribute.type == onnx.AttributeProto.INT:
                model.graph.node[at].attribute[index].i += 1
            elif attribute.type == onnx.AttributeProto.STRING:
                model.graph.node[at].attribute[index].s = b"none"
            else:
                model.graph.node[at].attribute[index].ints[0] += 1
            yield f"{name} another {attribute.name}"
            restore()
            del model.graph.node[at].attribute[index]
            yield f"{name} no {attribute.name}"
            restore()
    for index, tensor in enumerate(model.graph.initializer):
        half, other = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
        model.graph.initializer[index].data_type = other if tensor.data_type == half else half
        yield f"{tensor.name} of another type"
        restore()
        if tensor.dims:
            model.graph.initializer[index].dims[-1] += 1
            yield f"{tensor.name} of another shape"
            restore()
        width = {onnx.TensorProto.INT64: 8, onnx.TensorProto.INT32: 4}.get(tensor.data_type)
        if width and tensor.raw_data:
            raw = bytearray(tensor.raw_data)
            raw[-width:] = (77).to_bytes(width, "little")
            model.graph.initializer[index].raw_data = bytes(raw)
            yield f"{tensor.name} of other numbers"
            restore()
    for index in range(len(model.graph.input)):
        del model.graph.input[index]
        yield f"input {index} left out"
        restore()
        model.graph.input[index].type.tensor_type.elem_type += 1
        yield f"input {index} of another type"
        restore()
    model.graph.output.append(onnx.helper.make_tensor_value_info("input_ids", 7, None))
    yield "one output more"
    restore()
    for opset in range(len(model.opset_import)):
        model.opset_import[opset].version += 1
        yield f"opset {opset}"
        restore()
    model.functions.add(name="MatMulNBits", domain="com.microsoft")
    yield "an operator of its own"
    restore()
