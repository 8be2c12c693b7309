"""Reads an ONNX file: nodes, and initializers as read-only arrays over the memory-mapped data file.

Devices do not have the `onnx` package. This reads the parts of the format that edgekit's graphs use, and reports other
parts that a graph contains, so that a graph is never misread.

Bundles are untrusted: a damaged or malicious file raises `BundleError` before any array is created that its bytes do
not cover. Mapped data is read on access; as with any mapping, truncating the file meanwhile kills the process.

Source of the format: onnx/onnx.proto3, onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError
from edgekit.runners.cpu.onnx_reader.onnx_proto import INT4, ExternalData, NodeProto, Tensor, ValueInfo, parse_model

__all__ = ["Graph", "read_graph"]

# The largest of edgekit's graphs (64 layers in 8 bits, for TensorRT) has 2.4 MB, as weights are in the data file.
_MAX_FILE = 16 << 20
_MAX_ARRAY = 1 << 48
_MAX_NAME = 60
# Absent on Windows, where the system reclaims the pages when it needs them.
_DISCARD: int | None = getattr(mmap, "MADV_DONTNEED", None)


class Graph:
    """The graph of a model file.

    Attributes:
        nodes: In the file's order.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph.
        tensors: The initializers by name; `array` returns their values.
        opsets: Operator set version by domain.
        metadata: Metadata of the model.
        unread_parts: Names of parts that are not read but may change what the graph computes.

    Args:
        path: The model file; data files are beside it.

    Raises:
        BundleError: The file cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        model = parse_model(_read(path))
        self.nodes: tuple[NodeProto, ...] = model.nodes
        self.inputs: tuple[ValueInfo, ...] = model.inputs
        self.outputs: tuple[ValueInfo, ...] = model.outputs
        self.tensors: Mapping[str, Tensor] = model.tensors
        self.opsets: Mapping[str, int] = model.opsets
        self.metadata: Mapping[str, str] = model.metadata
        self.unread_parts: tuple[str, ...] = model.unread_parts
        self._mapped: dict[str, mmap.mmap] = {}

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return an initializer's values, read-only; values in a data file are mapped, not copied.

        Raises:
            BundleError: There is no such initializer, its dtype is not supported, or its bytes are missing.
        """
        tensor, label = self.tensors.get(name), name[:80]
        if tensor is None:
            raise BundleError(f"the graph has no weight `{label}`")
        if tensor.dtype is None:
            raise BundleError(f"weight `{label}` has a dtype that edgekit does not support")
        count = prod(tensor.shape)
        # numpy checks the product of the other dimensions even if one is 0.
        if prod(max(size, 1) for size in tensor.shape) * tensor.dtype.itemsize > _MAX_ARRAY:
            raise BundleError(f"weight `{label}` is impossibly large")
        if isinstance(tensor.data, ExternalData):
            return self._external(tensor, tensor.data, tensor.dtype, count)
        if isinstance(tensor.data, bytes):
            if len(tensor.data) != count * tensor.dtype.itemsize:
                raise BundleError(f"weight `{label}` has {len(tensor.data)} bytes; its shape is {tensor.shape}")
            return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
        if len(tensor.data) != count:
            raise BundleError(f"weight `{label}` has {len(tensor.data)} values; its shape is {tensor.shape}")
        if tensor.dtype.kind in "iu":  # numpy 1 would wrap them around
            limits = np.iinfo(tensor.dtype)
            if not all(limits.min <= value <= limits.max for value in tensor.data):
                raise BundleError(f"weight `{label}` has values out of range for its dtype")
        values = np.array(tensor.data, tensor.dtype).reshape(tensor.shape)
        values.flags.writeable = False
        return values

    def int4(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of an INT4 initializer, read-only: two values each, the first in the low nibble.

        Raises:
            BundleError: There is no such initializer, or its bytes are missing.
        """
        tensor, label = self.tensors.get(name), name[:80]
        if tensor is None or tensor.kind != INT4:
            raise BundleError(f"the graph has no INT4 weight `{label}`")
        # An odd number of values ends with an unused nibble.
        size = (prod(tensor.shape) + 1) // 2
        if size > _MAX_ARRAY:
            raise BundleError(f"weight `{label}` is impossibly large")
        if isinstance(tensor.data, ExternalData):
            return self._external(replace(tensor, shape=(size,)), tensor.data, np.dtype("u1"), size)
        if not isinstance(tensor.data, bytes) or len(tensor.data) != size:
            raise BundleError(f"weight `{label}` has {len(tensor.data)} bytes; its shape is {tensor.shape}")
        return np.frombuffer(tensor.data, np.uint8)

    def release_pages(self) -> None:
        """Drop the pages of the mapped data files from memory; they are read again on the next access.

        May be called while other threads read.
        """
        if _DISCARD is not None:
            for mapped in self._mapped.values():
                mapped.madvise(_DISCARD)

    def _external(self, tensor: Tensor, data: ExternalData, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        size = count * dtype.itemsize
        label = tensor.name[:80]
        if data.length is not None and data.length != size:
            raise BundleError(f"weight `{label}` has {data.length} bytes; its shape is {tensor.shape}")
        if data.offset % dtype.itemsize:
            raise BundleError(f"weight `{label}` is not aligned to its dtype")
        if not size:
            return np.empty(tensor.shape, dtype)
        mapped = self._map(data.location)
        if data.offset + size > len(mapped):
            raise BundleError(
                f"weight `{label}` extends beyond the end of {data.location}",
                hint="check the bundle: edgekit verify DIR",
            )
        return np.frombuffer(mapped, dtype, count, data.offset).reshape(tensor.shape)

    def _map(self, location: str) -> mmap.mmap:
        if location not in self._mapped:
            # A path could leave the bundle, and so could a link (see `_opened`).
            if location in {"", ".", ".."} or len(location) > _MAX_NAME or any(c in location for c in "/\\:\0"):
                raise BundleError(f"the graph refers to weights in `{location[:80]}`, outside the bundle")
            with _opened(self._folder / location) as file:
                try:
                    self._mapped[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:  # ValueError: the file is empty
                    raise BundleError(f"{self._folder / location} cannot be mapped: {error}") from error
        return self._mapped[location]


def read_graph(path: Path) -> Graph:
    """Read a model file.

    Raises:
        BundleError: The file cannot be read, or is damaged.
    """
    return Graph(path)


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        try:
            data = file.read(_MAX_FILE + 1)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise BundleError(f"{path} is too large for a graph without weights", hint="was this bundle made by edgekit?")
    return data


def _opened(path: Path) -> BinaryIO:
    """Open a regular file: no link, pipe or device."""
    # O_NONBLOCK: opening a pipe would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        number = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise BundleError(f"{path} cannot be read: {why}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise BundleError(f"{path} is not a regular file")
    return os.fdopen(number, "rb")
