"""Reads the kernels and the scratch memory that TensorRT's builder logs, and judges what the kernels do.

With detailed profiling verbosity the builder ends its verbose log with one line per kernel: its name (which ends in
`_myl<profile>_<number>`), its type, its operands with shapes and types, and the ONNX nodes that it computes. An engine
says the same only on a GPU; the log needs none. The format is that of TensorRT-RTX 1.7; NVIDIA does not document it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Kernel", "ProfileReport", "Value", "describe_profiles", "is_report", "read_kernels", "read_scratch"]

_LAYERS = "Layers:"
# Once for each profile.
_SCRATCH = re.compile(r"Total Activation Memory: (\d+)")

_LINE = re.compile(
    r"Name: (?P<name>\S.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: (?P<nodes>.*)"
)
_VALUE = re.compile(
    r"\{ Name: (?P<name>\S+)(?: \[profile \d+\])?, Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (\w+)"
)
_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_HOST_ONLY = "shape_call"
_ATTENTION = "_mha_"


@dataclass(frozen=True, slots=True)
class Value:
    """An operand of a kernel.

    Attributes:
        shape: -1 for a dimension that a step decides.
        dtype: As the builder names it: `Half`, `Int4`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an engine.

    Attributes:
        profile: Index of the optimization profile that it belongs to.
        kind: The builder's type: `gemm`, `kgen`, `runtime_fusion`.
        constants: The weights that it reads.
        nodes: Names of the ONNX nodes that it computes, or takes part in.
    """

    name: str
    profile: int
    kind: str
    inputs: tuple[Value, ...]
    constants: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What one profile of an engine does in a step.

    Attributes:
        kernels: Kernels launched.
        int4: Matrix products of the graph's INT4 weights that read them as INT4.
        expanded: Those that do not: ONNX nodes.
        cache_copies: Kernels that write the KV cache of a layer to another place.
        cache_moves: Kernels that move a cache from its input to its output, which are one address.
    """

    kernels: int
    int4: int
    expanded: tuple[str, ...]
    cache_copies: tuple[str, ...]
    cache_moves: tuple[str, ...]


def is_report(message: str) -> bool:
    """Whether one of the builder's messages has what is read here."""
    return message.startswith(_LAYERS) or _SCRATCH.match(message) is not None


def read_scratch(messages: Iterable[str]) -> int | None:
    """Return the bytes that an engine needs while it runs, beside inputs and outputs; None if no message has them."""
    return max((int(found[1]) for found in map(_SCRATCH.match, messages) if found), default=None)


def read_kernels(messages: Iterable[str]) -> list[Kernel]:
    """Read the kernels from the builder's verbose messages; those that only the host runs are left out."""
    lines = (line for message in messages if message.startswith(_LAYERS) for line in message.splitlines())
    return [_kernel(match) for match in map(_LINE.match, lines) if match and match["type"] != _HOST_ONLY]


def describe_profiles(
    kernels: Sequence[Kernel], products: Iterable[str], caches: Mapping[str, str | None]
) -> list[ProfileReport]:
    """Judge the kernels of each profile, in order.

    Args:
        kernels: All of the engine.
        products: ONNX nodes that multiply by an INT4 matrix.
        caches: By input, the output that is the same cache: `present.0.key` by `past_key_values.0.key`; None if the
            graph puts out new rows alone.
    """
    wanted = sorted(products)
    return [
        _describe([kernel for kernel in kernels if kernel.profile == profile], wanted, caches)
        for profile in sorted({kernel.profile for kernel in kernels})
    ]


def _describe(kernels: Sequence[Kernel], products: Sequence[str], caches: Mapping[str, str | None]) -> ProfileReport:
    packed = {
        node for kernel in kernels if any(one.dtype == "Int4" for one in kernel.constants) for node in kernel.nodes
    }
    moves = [kernel.name for kernel in kernels if _moves(kernel, caches)]
    copies = [kernel.name for kernel in kernels if kernel.name not in moves and _copies(kernel, caches)]
    return ProfileReport(
        kernels=len(kernels),
        int4=sum(node in packed for node in products),
        expanded=tuple(node for node in products if node not in packed),
        cache_copies=tuple(copies),
        cache_moves=tuple(moves),
    )


def _moves(kernel: Kernel, caches: Mapping[str, str | None]) -> bool:
    moved = [caches.get(value.name) for value in kernel.inputs]
    return bool(moved) and moved == [value.name for value in kernel.outputs]


def _copies(kernel: Kernel, caches: Mapping[str, str | None]) -> bool:
    """Whether a kernel other than a product or an attention reads a cache, and writes as much to another place."""
    if kernel.kind == "gemm" or _ATTENTION in kernel.name:
        return False
    names = {*caches, *caches.values()}
    read = [value for value in kernel.inputs if value.name in names]
    written = [value for value in kernel.outputs if value.name not in names]
    return any(_as_large(one, cache) for cache in read for one in written)


def _as_large(value: Value, cache: Value) -> bool:
    """Whether a value may hold as much as a cache, whose length a step decides or the builder knows."""
    if -1 in cache.shape:
        return -1 in value.shape
    return math.prod(map(abs, value.shape)) >= math.prod(cache.shape)


def _kernel(match: re.Match[str]) -> Kernel:
    name = match["name"]
    profile = _PROFILE.search(name)
    return Kernel(
        name,
        int(profile[1]) if profile else 0,
        match["type"],
        _values(match["inputs"]),
        _values(match["constants"]),
        _values(match["outputs"]),
        tuple(_NODE.findall(match["nodes"])),
    )


def _values(text: str) -> tuple[Value, ...]:
    return tuple(
        Value(name, tuple(int(size) for size in shape.split(",") if size), dtype)
        for name, shape, dtype in _VALUE.findall(text)
    )
