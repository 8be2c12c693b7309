"""Memory of an engine that is loaded: one account, for the runner that allocates it and for the plans made before.

    weights        of the engine
    KV arena       positions × bytes of a position, allocated once; positions are what is left, up to slots × context
    buffers        inputs and outputs, values between segments, new KV rows, logits
    scratch        what the engine computes in: its own figure once it is built, an estimate before
    contexts       execution contexts and captured graphs: an estimate
    workspace      the process with its libraries, and the CUDA context: an estimate

`RUNTIMES` has the estimates. What an engine was measured to take is in the runner's log when it loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekit.memory import RUNTIMES, Footprint, Shapes
from edgekit.runners.buckets import FIRST_BUCKET
from edgekit.runners.tensorrt.buffers import buffer_bytes
from edgekit.runners.tensorrt.shapes import BLOCK
from edgekit.runners.tensorrt.tensors import EngineTensors

__all__ = [
    "CHUNK_TOKENS",
    "MAX_BATCH",
    "EngineMemory",
    "Share",
    "engine_footprint",
    "planned_tensors",
    "position_bytes",
    "slot_positions",
]

CHUNK_TOKENS = RUNTIMES["tensorrt"].chunk
"""Tokens of a prefill chunk, if nothing else is asked for."""
MAX_BATCH = 4
"""Maximum sequences that an engine decodes in one execution, if nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What an engine takes beside its weights, in bytes.

    Attributes:
        scratch: What it computes in.
        buffers: Inputs and outputs.
        contexts: Execution contexts and captured graphs.
        position: One position of the KV arena, in all layers.
        capacity: Positions of a full slot.
        slots: Sequence slots.
        min_positions: Positions without which it is of no use.
    """

    scratch: int
    buffers: int
    contexts: int
    position: int
    capacity: int
    slots: int
    min_positions: int

    @property
    def beside(self) -> int:
        """All but the KV arena."""
        return self.scratch + self.buffers + self.contexts

    @classmethod
    def of(
        cls, tensors: EngineTensors, scratch: int, *, capacity: int, slots: int, batch: int, chunk: int
    ) -> EngineMemory:
        """Return the account of an engine.

        Args:
            tensors: Its inputs and outputs.
            scratch: What it computes in.
            capacity: Positions of a full slot.
            slots: Sequence slots.
            batch: Maximum sequences of an execution.
            chunk: Maximum tokens of a sequence in an execution.
        """
        return cls(
            scratch=scratch,
            buffers=buffer_bytes(tensors, capacity=capacity, batch=batch, chunk=chunk),
            contexts=RUNTIMES["tensorrt"].allocator,
            position=position_bytes(tensors),
            capacity=capacity,
            slots=slots,
            min_positions=capacity if tensors.in_place else min(capacity, FIRST_BUCKET),
        )


Share = Callable[[EngineMemory], int]
"""Returns how many positions the KV arena may have."""


def position_bytes(tensors: EngineTensors) -> int:
    """Return the bytes of one position of the KV arena, the region for moves included."""
    return (len(tensors.caches) + 1) * tensors.heads * tensors.row_bytes


def slot_positions(tensors: EngineTensors, context_length: int | None) -> int:
    """Return the positions of a slot of so many tokens; None is the engine's own context."""
    if tensors.in_place or context_length is None:
        return tensors.capacity
    # Whole places at aligned addresses, whatever the size of a row.
    return min(tensors.capacity, -(-context_length // FIRST_BUCKET) * FIRST_BUCKET)


def planned_tensors(
    *,
    layers: int,
    shapes: Shapes,
    masks: tuple[str, ...],
    context_length: int,
    batch: int = 1,
    chunk: int = CHUNK_TOKENS,
) -> EngineTensors:
    """Return what the engine of a `portable` graph will take and give.

    Args:
        layers: Number of decoder layers.
        shapes: The model's dimensions.
        masks: The graph's masks.
        context_length: Maximum tokens of a sequence.
        batch: Maximum sequences that decode in one execution.
        chunk: Maximum tokens of a prefill chunk.
    """
    return EngineTensors(
        caches=tuple(f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")),
        heads=shapes.kv_heads or shapes.heads,
        head_dim=shapes.head_width,
        dtype=np.dtype(np.float16),
        in_place=False,
        block=BLOCK,
        capacity=context_length,
        masks=masks,
        max_batch=batch,
        max_chunk=chunk,
        vocab_size=shapes.vocab,
        boundaries={},
    )


def engine_footprint(tensors: EngineTensors, shapes: Shapes, runtime: str, *, weights: int) -> Footprint:
    """Return the footprint of an engine that is not built yet.

    Args:
        tensors: What it will take and give, with its limits.
        shapes: The model's dimensions.
        runtime: `tensorrt` or `tensorrt_rtx`.
        weights: Bytes of its graph; those of the engine are computed from them.
    """
    figures = RUNTIMES[runtime]
    if tensors.max_batch > 1:
        # The builder keeps the INT4 weights in another order for it (docs/decisions/0035): at most all of them.
        weights += weights
    row = tensors.heads * tensors.row_bytes
    known = figures.footprint(shapes, weights=weights, kv_per_token=len(tensors.caches) * row)
    limits = {"batch": tensors.max_batch, "chunk": tensors.max_chunk}
    fixed = buffer_bytes(tensors, capacity=0, **limits)
    growing = buffer_bytes(tensors, capacity=FIRST_BUCKET, **limits) - fixed
    return Footprint(
        weights=weights,
        kv_per_token=known.kv_per_token,
        activations=known.activations + fixed,
        activations_per_token=known.activations_per_token + -(-growing // FIRST_BUCKET),
        workspace=known.workspace,
        spare_per_token=position_bytes(tensors) - known.kv_per_token,
    )
