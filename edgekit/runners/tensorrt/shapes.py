"""The shapes that an engine supports: its optimization profiles, for one token, a prefill chunk, and several sequences.

Several sequences have a profile of their own, so that one alone keeps the kernels that the builder chooses for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit.errors import RunnerError
from edgekit.runners.cpu.onnx_reader.onnx_proto import ValueInfo
from edgekit.runners.tensorrt.engine_set import Profile

__all__ = ["BLOCK", "BuildLimits", "profile_shapes"]

BLOCK = 8
"""Positions in one block of a `portable` cache; that of the graph is fixed in its inputs."""

Shapes = dict[str, list[list[int]]]
"""Min, opt and max shape by input."""


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What the engine must be able to run.

    Attributes:
        chunk: Max new tokens per step (the prefill chunk).
        context_length: Max tokens of a sequence.
        typical_past: Tokens in the cache that the builder tunes for.
        batch: Max sequences that decode in one execution.
    """

    chunk: int = 128
    context_length: int = 4096
    typical_past: int = 1024
    batch: int = 1

    def clamp(self, context_length: int | None) -> BuildLimits:
        """Return the limits within the model's context, if it has one."""
        context = min(self.context_length, context_length or self.context_length)
        chunk = min(self.chunk, context)
        return BuildLimits(chunk, context, min(self.typical_past, context - chunk), self.batch)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The profiles: one token, a chunk, and one token of each of several sequences, if that is wanted."""
        several = (Profile(self.batch, 1),) if self.batch > 1 else ()
        return (Profile(1, 1), Profile(1, self.chunk), *several)


def profile_shapes(inputs: Iterable[ValueInfo], limits: BuildLimits, profile: Profile) -> Shapes:
    """Return the shapes of every input in a profile, which is tuned for its longest step.

    Raises:
        RunnerError: An input has a dimension that is not known.
    """
    # The last token sees all others; `portable` holds them in whole blocks.
    past, typical = -(-(limits.context_length - 1) // BLOCK), limits.typical_past // BLOCK
    sizes = {
        "batch": (1, profile.batch, profile.batch),
        "sequence": (1, profile.tokens, profile.tokens),
        "rows": (1, 1, profile.tokens),
        "blocks": (0, typical, past),
        "total": (1, typical * BLOCK + profile.tokens, past * BLOCK + profile.tokens),
    }
    return {
        value.name: [[_size(value, dim, sizes, i) for dim in value.shape or ()] for i in range(3)] for value in inputs
    }


def _size(value: ValueInfo, dim: int | str, sizes: dict[str, tuple[int, int, int]], index: int) -> int:
    if isinstance(dim, int):
        return dim
    if dim not in sizes:
        raise RunnerError(f"input `{value.name}` has the unknown dimension `{dim}`", hint="export the model again")
    return sizes[dim][index]
