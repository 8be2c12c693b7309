"""Chooses what a bundle's engine must be able to run, from what the bundle will be served with on the machine.

`edgekit build` and the daemon's own build ask here, so that they want the same engine, and `edgekit plan` asks how many
sequences it decodes in one execution, so that it plans for that engine. The choice depends on the
machine's nominal memory, never on what happens to be free: another start must find the engine again.
"""

from __future__ import annotations

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.shapes import model_shapes
from edgekit.memory import GIB, Footprint
from edgekit.profile import ENGINES
from edgekit.runners.buckets import FIRST_BUCKET
from edgekit.runners.tensorrt.memory import MAX_BATCH, engine_footprint, planned_tensors
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.target import Target

__all__ = ["engine_batch", "engine_limits"]

# A chat shorter than this is of no use: then it is loading the engine that says how much memory lacks.
_MIN_CONTEXT = 2 * FIRST_BUCKET


def engine_limits(
    bundle: Bundle,
    target: Target | None,
    *,
    context_length: int | None = None,
    parallel: int = MAX_BATCH,
    batch: int | None = None,
    chunk: int | None = None,
) -> BuildLimits:
    """Return the limits of a bundle's engine.

    Args:
        bundle: The bundle.
        target: The machine that the engine is for, with its memory; None if it is not known.
        context_length: Tokens of a sequence as configured; None takes the bundle's, or the longest for which the
            machine has memory.
        parallel: Sequences that will run at the same time.
        batch: Sequences that decode in one execution; None takes as many of `parallel` as an engine can, if the
            machine has memory for the second copy of the weights that this takes.
        chunk: Tokens of a prefill chunk; None takes the default.
    """
    context = context_length or bundle.manifest.context_length
    needs = {several: _footprint(bundle, target, context, several) for several in (1, MAX_BATCH)}
    available = None if target is None else _available(target)
    if batch is None:
        batch = engine_batch(parallel, needs[MAX_BATCH], available=available, context_length=context)
    need = needs[1 if batch == 1 else MAX_BATCH]
    if context_length is None and need is not None and available is not None:
        context = max(need.longest_context(available, context), min(context, _MIN_CONTEXT))
    return BuildLimits(context_length=context, batch=batch, **({} if chunk is None else {"chunk": chunk}))


def engine_batch(parallel: int, need: Footprint | None, *, available: int | None, context_length: int) -> int:
    """Return how many sequences an engine is to decode in one execution, unless the user says.

    Args:
        parallel: Sequences that will run at the same time.
        need: Footprint of an engine for `MAX_BATCH` sequences; None if it is not known.
        available: Memory of the machine for the model, bytes; None if it is not known.
        context_length: Tokens of a sequence.
    """
    if need is None or available is None or need.total(context_length) > available:
        return 1
    return min(parallel, MAX_BATCH)


def _available(target: Target) -> int | None:
    return None if target.memory_gib is None else int((target.memory_gib - target.reserve_gib) * GIB)


def _footprint(bundle: Bundle, target: Target | None, context: int, batch: int) -> Footprint | None:
    """The footprint of an engine on a machine; None if it is not known."""
    shapes = model_shapes(bundle.path)
    if target is None or shapes is None:
        return None
    runner = next((name for name in target.runners if name in ENGINES), None)
    if runner is None or not set(bundle.manifest.compatible) & set(target.accepts):
        return None
    memory = bundle.manifest.memory
    row = 2 * (shapes.kv_heads or shapes.heads) * shapes.head_width
    tensors = planned_tensors(
        layers=max(1, memory.kv_cache_per_token // max(1, 2 * row)),
        shapes=shapes,
        masks=("attention_mask",),
        context_length=context,
        batch=batch,
    )
    return engine_footprint(tensors, shapes, runner, weights=memory.weights)
