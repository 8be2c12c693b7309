"""Runs one matrix product on onnxruntime's CUDA provider: a program of its own, which may crash.

Many wheels list the provider and cannot use it: a library is missing, the driver is too old, or the wheel has no code
for this GPU (microsoft/onnxruntime#20503). The product is the one that a bundle's graph is made of, in float16 with
4-bit weights, which onnxruntime fuses into one operator. Prints a line of JSON: `version`, `providers`, and `error`,
which is null if the result is right.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runners.tiny_onnx import FLOAT16, INT4, Node, Tensor, Value, encode_model

__all__ = ["PROVIDER", "compute", "expected", "probe_graph"]

PROVIDER = "CUDAExecutionProvider"

# Groups of 32 inputs, which every onnxruntime with CUDA computes.
_K, _N, _GROUP = 64, 16, 32
# Float16, and on a CPU activations of 8 bits.
_TOLERANCE = 0.02


def probe_graph() -> bytes:
    """Return the graph, serialized: x, float16 `[rows, 64]`, times a 4-bit matrix `[64, 16]`."""
    codes = _codes().reshape(-1).astype(np.uint8)
    packed = (codes[0::2] & 15) | ((codes[1::2] & 15) << 4)
    return encode_model(
        [
            Node("DequantizeLinear", ["codes", "scales"], ["matrix"], {"axis": 0, "block_size": _GROUP}),
            Node("MatMul", ["x", "matrix"], ["y"]),
        ],
        [Value("x", FLOAT16, ["rows", _K])],
        [Value("y", FLOAT16, ["rows", _N])],
        [
            Tensor("codes", INT4, [_K, _N], packed.tobytes()),
            Tensor("scales", FLOAT16, [_K // _GROUP, _N], _scales().tobytes()),
        ],
        opset=21,
        ir_version=10,
    )


def compute(provider: str, *, exclusive: bool = True) -> npt.NDArray[np.float16]:
    """Return the product as a provider computes it; see `expected`.

    Args:
        provider: The provider's name.
        exclusive: Fail, instead of computing on the CPU what the provider cannot.

    Raises:
        RuntimeError: The provider could not be loaded.
        Exception: onnxruntime failed; its exceptions share no base class.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if exclusive:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Otherwise onnxruntime prints an error and tries the CPU.
    session = ort.InferenceSession(probe_graph(), options, providers=[provider], enable_fallback=0)
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime cannot load {provider}")
    result: npt.NDArray[np.float16] = session.run(["y"], {"x": _x()})[0]
    return result


def expected() -> npt.NDArray[np.float32]:
    """The product, float32 `[1, 16]`."""
    matrix = _codes() * np.repeat(_scales().astype(np.float32), _GROUP, axis=0)
    product: npt.NDArray[np.float32] = _x().astype(np.float32) @ matrix
    return product


def _x() -> npt.NDArray[np.float16]:
    return (np.arange(_K) % 5 - 2).astype(np.float16)[None]


def _codes() -> npt.NDArray[np.int8]:
    return (np.arange(_K * _N) * 7 % 16 - 8).astype(np.int8).reshape(_K, _N)


def _scales() -> npt.NDArray[np.float16]:
    group, column = np.indices((_K // _GROUP, _N))
    return (2.0 ** -(3 + (group + column) % 3)).astype(np.float16)


def _facts() -> dict[str, Any]:
    import onnxruntime as ort

    facts: dict[str, Any] = {"version": ort.__version__, "providers": ort.get_available_providers(), "error": None}
    if PROVIDER not in facts["providers"]:
        return facts | {"error": f"this onnxruntime has no {PROVIDER}"}
    if hasattr(ort, "preload_dlls"):
        # Finds the CUDA libraries that pip installed.
        ort.preload_dlls()
    try:
        result = compute(PROVIDER)
    except Exception as error:  # noqa: BLE001
        return facts | {"error": str(error) or type(error).__name__}
    if not np.allclose(result, expected(), atol=_TOLERANCE):
        return facts | {"error": "a matrix product came out wrong"}
    return facts


if __name__ == "__main__":
    print(json.dumps(_facts()))  # noqa: T201
