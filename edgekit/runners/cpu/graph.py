"""Reads an ONNX file: nodes, and initializers as read-only arrays over the mapped data file.

The `onnx` package is not on a device; this reads the parts of its format that a graph of ours has, and says which
others a graph has, so that nobody takes it for one that it is not. It knows no operator.

A bundle may come from a stranger: a file that is damaged or lies ends in a `BundleError`, before any array is made that
its bytes do not cover. What is mapped is read when it is used; a data file that is cut meanwhile kills the process, as
any mapping does.

Source of the format: onnx/onnx.proto3, onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError
from edgekit.runners.cpu.messages import Node, Place, Tensor, Value, parse_model

__all__ = ["Graph", "read_graph"]

# The largest graph of ours, of 64 layers with float offsets, is below one megabyte: weights are in the data file.
_LARGEST = 16 << 20
_LARGEST_ARRAY = 1 << 48
_LONGEST_NAME = 60
# Windows has no such call; there the system takes the pages when it needs them.
_LET_GO: int | None = getattr(mmap, "MADV_DONTNEED", None)


class Graph:
    """The graph of a model file.

    Attributes:
        nodes: In the file's order.
        inputs: What the graph is given.
        outputs: What it gives.
        tensors: The initializers by name; `array` gives their values.
        opsets: Operator set version by domain.
        metadata: Of the model.
        foreign: Names of parts that are not read and that may change what the graph computes.

    Args:
        path: The model file; data files lie beside it.

    Raises:
        BundleError: It cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        model = parse_model(_read(path))
        self.nodes: tuple[Node, ...] = model.nodes
        self.inputs: tuple[Value, ...] = model.inputs
        self.outputs: tuple[Value, ...] = model.outputs
        self.tensors: Mapping[str, Tensor] = model.tensors
        self.opsets: Mapping[str, int] = model.opsets
        self.metadata: Mapping[str, str] = model.metadata
        self.foreign: tuple[str, ...] = model.foreign
        self._mapped: dict[str, mmap.mmap] = {}

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return an initializer's values, read-only; those in a data file are mapped and not copied.

        Raises:
            BundleError: There is none of that name, its type is not known, or its bytes are not there.
        """
        tensor, label = self.tensors.get(name), name[:80]
        if tensor is None:
            raise BundleError(f"the graph has no weight `{label}`")
        if tensor.dtype is None:
            raise BundleError(f"weight `{label}` is of a type that edgekit does not know")
        count = prod(tensor.shape)
        # Of no elements, too, numpy wants the other dimensions to be a size.
        if prod(max(size, 1) for size in tensor.shape) * tensor.dtype.itemsize > _LARGEST_ARRAY:
            raise BundleError(f"weight `{label}` is larger than any file")
        if isinstance(tensor.data, Place):
            return self._external(tensor, tensor.data, tensor.dtype, count)
        if isinstance(tensor.data, bytes):
            if len(tensor.data) != count * tensor.dtype.itemsize:
                raise BundleError(f"weight `{label}` has {len(tensor.data)} bytes; its shape is {tensor.shape}")
            return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
        if len(tensor.data) != count:
            raise BundleError(f"weight `{label}` has {len(tensor.data)} values; its shape is {tensor.shape}")
        try:
            values = np.array(tensor.data, tensor.dtype).reshape(tensor.shape)
        except OverflowError:
            raise BundleError(f"weight `{label}` has values that are not of its type") from None
        values.flags.writeable = False
        return values

    def let_go(self) -> None:
        """Give back the memory of all that was read of the data files; what is read again is read from them again.

        May be called while other threads read.
        """
        if _LET_GO is not None:
            for mapped in self._mapped.values():
                mapped.madvise(_LET_GO)

    def _external(self, tensor: Tensor, place: Place, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        size = count * dtype.itemsize
        label = tensor.name[:80]
        if place.length is not None and place.length != size:
            raise BundleError(f"weight `{label}` has {place.length} bytes; its shape is {tensor.shape}")
        if place.offset % dtype.itemsize:
            raise BundleError(f"weight `{label}` does not lie where its type can be read")
        if not size:
            return np.empty(tensor.shape, dtype)
        mapped = self._map(place.location)
        if place.offset + size > len(mapped):
            raise BundleError(
                f"weight `{label}` lies beyond the end of {place.location}",
                hint="check the bundle: edgekit verify DIR",
            )
        return np.frombuffer(mapped, dtype, count, place.offset).reshape(tensor.shape)

    def _map(self, location: str) -> mmap.mmap:
        if location not in self._mapped:
            # A path could lead out of the bundle, and so could a link.
            if location in {"", ".", ".."} or len(location) > _LONGEST_NAME or any(c in location for c in "/\\:\0"):
                raise BundleError(f"the graph's weights are said to be in `{location[:80]}`, outside the bundle")
            with _opened(self._folder / location) as file:
                try:
                    self._mapped[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:  # ValueError: the file is empty
                    raise BundleError(f"{self._folder / location} cannot be mapped: {error}") from error
        return self._mapped[location]


def read_graph(path: Path) -> Graph:
    """Read a model file.

    Raises:
        BundleError: It cannot be read, or is damaged.
    """
    return Graph(path)


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        try:
            data = file.read(_LARGEST + 1)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise BundleError(f"{path} is larger than the structure of any model", hint="is this a bundle of edgekit's?")
    return data


def _opened(path: Path) -> BinaryIO:
    """Open a file that is one, and no link, pipe or device."""
    # Opening a pipe would wait for whoever writes into it.
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
