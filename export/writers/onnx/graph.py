"""A small ONNX graph builder that streams weights to one external data file.

`model.onnx` holds only the graph; tensors are appended to `model.onnx.data` one by one, so the full model is never in
memory.

Source of the file format: onnx/docs/IR.md and onnx/docs/ExternalData.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgekit.export.writers.streamed import StreamedFile

__all__ = ["DATA_FILE", "MODEL_FILE", "Dims", "Graph"]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

Dims = Sequence[int | str]
Attribute = Any

# Smaller constants are stored in the model file: shapes, axes, scalars.
_INLINE_BYTES = 256
# Large tensors are page-aligned so that a runtime can map them; small ones are aligned to a cache line.
_PAGE, _LINE, _LARGE = 4096, 64, 65_536


class Graph:
    """Collects nodes, inputs, outputs and initializers; `save` writes the model file.

    A context manager, which closes the data file.

    Attributes:
        data_sha256: SHA-256 of `model.onnx.data`, once the graph is closed.

    Args:
        folder: The folder for `model.onnx` and `model.onnx.data`.
        opsets: Operator set version by domain.
        ir_version: Version of the ONNX file format; 10 is the first with INT4 and the last that TensorRT 10.3 supports.
    """

    def __init__(self, folder: Path, opsets: Mapping[str, int], *, ir_version: int = 10) -> None:
        self._folder = folder
        self._opsets = dict(opsets)
        self._ir_version = ir_version
        self._proto = onnx.GraphProto(name="decoder")
        self._locations: dict[str, tuple[int, int]] = {}
        self._values: set[str] = set()
        self.data_sha256 = ""
        self._data = StreamedFile(folder / DATA_FILE)

    def __enter__(self) -> Graph:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.data_sha256 = self._data.close()

    def input(self, name: str, dtype: int, dims: Dims) -> str:
        """Declare a graph input; `dtype` is a `TensorProto.DataType`, a string in `dims` is a symbolic dimension."""
        self._proto.input.append(helper.make_tensor_value_info(name, dtype, list(dims)))
        return name

    def output(self, name: str, dtype: int, dims: Dims) -> str:
        """Declare a graph output; a node must produce a value of this name."""
        self._proto.output.append(helper.make_tensor_value_info(name, dtype, list(dims)))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str | None = None,
        domain: str = "",
        **attributes: Attribute,
    ) -> str:
        """Add a node with one output and return the output's name (`<name>/output_0` unless given)."""
        return self.nodes(op, inputs, name, [output or f"{name}/output_0"], domain=domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> tuple[str, ...]:
        """Add a node with several outputs; an empty name omits that input or output."""
        self._proto.node.append(
            helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain or None, **attributes)
        )
        return tuple(outputs)

    def copy(self, node: onnx.NodeProto) -> None:
        """Add a copy of a node from another graph."""
        self._proto.node.append(node)

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Add an initializer from an array; a name that exists already is not added again."""
        if name in self._values:
            return name
        values = np.asarray(values)
        dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
        if values.nbytes <= _INLINE_BYTES:
            tensor = self._initializer(name, dtype, values.shape)
            tensor.raw_data = values.tobytes()
            return name
        return self.stream(name, dtype, values.shape, (np.ascontiguousarray(values),))

    def stream(self, name: str, dtype: int, shape: Sequence[int], parts: Iterable[npt.NDArray[np.generic]]) -> str:
        """Add an initializer from contiguous parts, each released once it is in the data file."""
        start = self._align(dtype, shape)
        for part in parts:
            self._data.write(part.reshape(-1).view(np.uint8).data)
        self._locations[name] = (start, self._data.tell() - start)
        self._external(self._initializer(name, dtype, shape), self._locations[name])
        return name

    def alias(self, name: str, dtype: int, shape: Sequence[int], of: str) -> str:
        """Add an initializer that shares the bytes of another one, with its own name and shape."""
        self._locations[name] = self._locations[of]
        self._external(self._initializer(name, dtype, shape), self._locations[name])
        return name

    def undeclare(self, *names: str) -> None:
        """Remove the declarations of inputs and outputs; nodes may still use these names."""
        for declared in (self._proto.input, self._proto.output):
            kept = [value for value in declared if value.name not in names]
            del declared[:]
            declared.extend(kept)

    def nodes_of(self, op: str) -> list[onnx.NodeProto]:
        """Return the nodes of an operator, which may be modified in place."""
        return [node for node in self._proto.node if node.op_type == op]

    @contextmanager
    def prepend(self) -> Iterator[None]:
        """Insert nodes added within the context before the existing ones, so they can replace graph inputs."""
        existing = list(self._proto.node)
        del self._proto.node[:]
        yield
        self._proto.node.extend(existing)

    def save(self, metadata: Mapping[str, str], *, producer_version: str, file: str = MODEL_FILE) -> None:
        """Write the model file, deterministically. Several model files may share the data file."""
        self._data.flush()
        model = helper.make_model(
            self._proto,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._opsets.items()],
            ir_version=self._ir_version,
            producer_name="edgekit",
            producer_version=producer_version,
        )
        helper.set_model_props(model, dict(metadata))
        (self._folder / file).write_bytes(model.SerializeToString(deterministic=True))

    def _initializer(self, name: str, dtype: int, shape: Sequence[int]) -> TensorProto:
        self._values.add(name)
        tensor: TensorProto = self._proto.initializer.add()
        tensor.name = name
        tensor.data_type = dtype
        tensor.dims.extend(int(size) for size in shape)
        return tensor

    def _align(self, dtype: int, shape: Sequence[int]) -> int:
        count = int(np.prod([int(size) for size in shape], dtype=np.int64))
        size = count if dtype in {TensorProto.INT4, TensorProto.UINT4} else count * 2
        step = _PAGE if size >= _LARGE else _LINE
        self._data.write(b"\0" * (-self._data.tell() % step))
        return self._data.tell()

    @staticmethod
    def _external(tensor: TensorProto, location: tuple[int, int]) -> None:
        tensor.data_location = TensorProto.EXTERNAL
        offset, length = location
        for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
