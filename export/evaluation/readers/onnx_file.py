"""The initializers of an ONNX artifact as arrays, memory-mapped from its data file.

Whether a matrix is stored as `[out, in]` or `[in, out]` is derived from the operator that reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ExportError
from edgekit.export.writers.onnx.graph import DATA_FILE, MODEL_FILE

__all__ = ["OnnxFile"]

_NIBBLES = {TensorProto.INT4, TensorProto.UINT4}


class OnnxFile:
    """The initializers by name.

    Args:
        folder: The folder of `model.onnx` and its data file.

    Raises:
        ExportError: One is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            model = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
        except Exception as error:  # protobuf's and the system's errors share no base class
            raise ExportError(f"{folder / MODEL_FILE} cannot be read: {error}") from error
        self._tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        readers = [node for node in model.graph.node if node.op_type in {"Gather", "Transpose"}]
        self._row_major = {name for node in readers for name in node.input[:1]}
        self._data = folder / DATA_FILE

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an initializer."""
        return tuple(int(size) for size in self._find(name).dims)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return an initializer, memory-mapped if it is in the data file.

        4-bit types come as flat bytes: two elements per byte, the first in the low nibble.

        Raises:
            ExportError: The initializer does not exist, or the data file is too short.
        """
        tensor = self._find(name)
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        location = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(location["offset"]), int(location["length"])
        packed = tensor.data_type in _NIBBLES
        dtype = np.dtype(np.uint8) if packed else helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = (length,) if packed else self.shape(name)
        if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize != length or offset + length > self._data_size():
            raise ExportError(f"{self._data} does not match {MODEL_FILE} for `{name}`", hint="export the model again")
        if length == 0:
            return np.empty(shape, dtype)
        return np.memmap(self._data, dtype, "r", offset, shape)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """Return an initializer in float32."""
        return np.asarray(self.array(name)).astype(np.float32)

    def rows(self, name: str, rows: slice, inputs: int) -> npt.NDArray[np.float32]:
        """Return rows of a float matrix, float32 `[rows, inputs]`, contiguous.

        The graph determines the layout: a matrix that is gathered from or transposed is `[out, in]`, any other
        `[in, out]`. edgekit has stored output heads in both ways.

        Args:
            name: The initializer's name.
            rows: The outputs to return.
            inputs: Number of inputs of the matrix.

        Raises:
            ExportError: The shape does not match.
        """
        array = self.array(name)
        matrix = array if name in self._row_major else array.T
        if matrix.ndim != 2 or matrix.shape[1] != inputs or matrix.shape[0] < rows.stop:
            raise ExportError(
                f"`{name}` is stored as {self.shape(name)}, which does not match {inputs} inputs",
                hint="was it written by another version of edgekit? Export the model again",
            )
        return np.ascontiguousarray(matrix[rows], np.float32)

    def _find(self, name: str) -> TensorProto:
        if name not in self._tensors:
            raise ExportError(
                f"the artifact has no weight `{name}`", hint="was it written by another version of edgekit?"
            )
        tensor: TensorProto = self._tensors[name]
        return tensor

    def _data_size(self) -> int:
        try:
            return self._data.stat().st_size
        except OSError as error:
            raise ExportError(f"{self._data} cannot be read: {error.strerror}") from error
