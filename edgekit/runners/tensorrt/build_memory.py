"""How much memory a build needs, and into how many segments a graph must be cut so that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import RunnerError
from edgekit.memory import GIB, MIB
from edgekit.runners.tensorrt.segments import Chain, Segment

__all__ = ["COSTS", "BuildCost", "choose_segments", "needed_bytes"]


@dataclass(frozen=True, slots=True)
class BuildCost:
    """Peak resident memory of the process that builds a segment.

    Attributes:
        process: Interpreter and libraries, bytes.
        layer: Bytes for each decoder layer, whatever its size.
        int4: Bytes per byte of INT4 weights.
        other: Bytes per byte of other weights: each profile may keep them in an order of its own.
        largest: Bytes per byte of the largest matrix, in addition.
        batch: Bytes per byte of INT4 weights, in addition, with a profile for several sequences.
        basis: Where the figures come from.
    """

    process: int
    layer: int
    int4: float
    other: float
    largest: float
    batch: float
    basis: str

    def needed(self, segment: Segment, *, batch: int = 1) -> int:
        """Return the bytes that building a segment takes, for so many sequences in one execution."""
        int4 = self.int4 + (self.batch if batch > 1 else 0)
        weights = int4 * segment.int4_bytes + self.other * (segment.graph_bytes - segment.int4_bytes)
        return int(self.process + self.layer * segment.layers + weights + self.largest * segment.largest_bytes)


COSTS: Mapping[str, BuildCost] = {
    "tensorrt_rtx": BuildCost(
        400 * MIB,
        10 * MIB,
        4.0,
        4.6,
        2.6,
        2.0,
        "measured: TensorRT-RTX 1.7.1 for SM86, x86-64 Linux; 28 segments of Qwen2.5's 7B and 0.5B shapes with heads "
        "of 4, 8 and 16 bits, 11 to 3,754 MiB, took at most 98 % of it; embeddings and float heads take about half",
    ),
    "tensorrt": BuildCost(
        900 * MIB,
        10 * MIB,
        5.0,
        5.6,
        2.6,
        2.6,
        "estimate: as the library for RTX, the finished engine (10.3 does not stream it), and a CUDA context",
    ),
}
"""By library."""


def needed_bytes(segment: Segment, library: str, *, batch: int = 1) -> int:
    """Return the bytes that building a segment takes with a library, for so many sequences in one execution."""
    return COSTS[library].needed(segment, batch=batch)


def choose_segments(chain: Chain, library: str, available: int | None, *, batch: int = 1) -> int:
    """Return the smallest number of segments whose builds fit into memory.

    Args:
        chain: The graph.
        library: The library that builds.
        available: Bytes of memory; if they are not known, the graph is left whole.
        batch: Sequences in one execution.

    Raises:
        RunnerError: Even single layers do not fit; the message has the figures.
    """
    if available is None:
        return 1
    smallest = None
    for count in range(1, len(chain) + 1):
        needed = max(needed_bytes(part, library, batch=batch) for part in chain.cut(count))
        if needed <= available:
            return count
        smallest = needed if smallest is None else min(smallest, needed)
    raise RunnerError(
        f"building the engine takes {(smallest or 0) / GIB:.1f} GiB of memory even if cut into single layers; "
        f"{available / GIB:.1f} GiB are available",
        hint="stop what else uses memory; on a Jetson without a desktop: sudo systemctl isolate multi-user.target; or "
        "fetch the engine from another device: edgekit build BUNDLE --from FOLDER",
        code="build_memory",
    )
