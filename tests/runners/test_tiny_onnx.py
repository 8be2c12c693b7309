from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from edgekit.runners.tiny_onnx import FLOAT, INT64, Node, Tensor, Value, encode_model


def test_an_encoded_graph_is_what_onnx_makes_and_computes() -> None:
    weights = np.arange(600, dtype=np.float32).reshape(2, 300)
    encoded = encode_model(
        [Node("Gather", ["table", "ids"], ["rows"], {"axis": 1}), Node("Add", ["rows", "x"], ["y"])],
        [Value("ids", INT64, ["count"]), Value("x", FLOAT, [2, "count"])],
        [Value("y", FLOAT, [2, "count"])],
        [Tensor("table", FLOAT, weights.shape, weights.tobytes())],
        opset=18,
        ir_version=8,
    )
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], axis=1),
            helper.make_node("Add", ["rows", "x"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("ids", 7, ["count"]), helper.make_tensor_value_info("x", 1, [2, "count"])],
        [helper.make_tensor_value_info("y", 1, [2, "count"])],
        [onnx.numpy_helper.from_array(weights, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert onnx.load_from_string(encoded).SerializeToString() == model.SerializeToString()
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    ids = np.array([299, 0])
    (y,) = session.run(None, {"ids": ids, "x": np.ones((2, 2), np.float32)})
    np.testing.assert_array_equal(y, weights[:, ids] + 1)
