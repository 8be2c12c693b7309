"""How much memory a build needs, and into how many segments a graph must be cut so that it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit.errors import RunnerError
from edgekit.machine import available_bytes
from edgekit.memory import GIB, MIB
from edgekit.runners.tensorrt.segments import Chain, Segment

__all__ = ["COSTS", "BuildCost", "choose_segments", "needed_bytes"]


@dataclass(frozen=True, slots=True)
class BuildCost:
    """Peak memory of a build process with two profiles.

    Attributes:
        process: Interpreter, libraries and what does not depend on the weights, bytes.
        weights: Bytes per byte of weights.
        largest: Bytes per byte of the largest matrix, in addition.
        basis: Where the figures come from.
    """

    process: int
    weights: float
    largest: float
    basis: str

    def needed(self, segment: Segment) -> int:
        """Return the bytes that building a segment takes."""
        return int(self.process + self.weights * segment.graph_bytes + self.largest * segment.largest_bytes)


COSTS: Mapping[str, BuildCost] = {
    "tensorrt_rtx": BuildCost(
        400 * MIB,
        3.8,
        2.2,
        "measured: TensorRT-RTX 1.7.1, x86-64",
    ),
    "tensorrt": BuildCost(
        900 * MIB,
        4.8,
        2.2,
        "estimate: as the library for RTX, the finished engine (10.3 does not stream it), and a CUDA context",
    ),
}
"""By library."""


def needed_bytes(segment: Segment, library: str) -> int:
    """Return the bytes that building a segment takes with a library."""
    return COSTS[library].needed(segment)


def choose_segments(chain: Chain, library: str, available: Callable[[], int | None] = available_bytes) -> int:
    """Return the smallest number of segments whose builds fit into the memory that is available now.

    Raises:
        RunnerError: Even single layers do not fit; the message has the figures.
    """
    free = available()
    if free is None:
        return 1
    smallest = None
    for count in range(1, len(chain) + 1):
        needed = max(needed_bytes(part, library) for part in chain.cut(count))
        if needed <= free:
            return count
        smallest = needed if smallest is None else min(smallest, needed)
    raise RunnerError(
        f"building the engine takes {(smallest or 0) / GIB:.1f} GiB of memory even if cut into single layers; "
        f"{free / GIB:.1f} GiB are available",
        hint="stop what else uses memory; on a Jetson without a desktop: sudo systemctl isolate multi-user.target; or "
        "fetch the engine from another device: edgekit build BUNDLE --from FOLDER",
    )
