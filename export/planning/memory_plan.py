"""The memory of an artifact on a device; of an engine, with the sequences that the device will build it for.

`edgekit.memory` has the arithmetic, `edgekit.runners.tensorrt` the engine's own account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.cores import usable_cores
from edgekit.errors import option
from edgekit.export.architectures.decoder import Decoder, Layer
from edgekit.export.writers.sizes import Sizes
from edgekit.memory import GIB, RUNTIMES, Footprint, Plan, Shapes
from edgekit.profile import ENGINES
from edgekit.runners.tensorrt.limits import engine_batch
from edgekit.runners.tensorrt.memory import MAX_BATCH, engine_footprint, planned_tensors
from edgekit.target import Target

__all__ = ["Artifact", "memory_plan", "notes_on_batch"]

# The context to plan for if none is requested and none fits.
_MIN_CONTEXT = 2048
# mlx-lm's KV cache of sliding-window layers holds only the window.
_WINDOWED_BY_MLX = {"gemma3_text"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a runner will load.

    Attributes:
        decoder: The model.
        sizes: The artifact's sizes.
        weights: Bytes that its weights take.
        runner: The runner.
        element: Bytes per KV cache element.
    """

    decoder: Decoder
    sizes: Sizes
    weights: int
    runner: str
    element: int

    def footprint(self, batch: int = 1) -> Footprint:
        """Return its footprint; for an engine, with so many sequences in one execution."""
        return _footprint(self, batch)


def _footprint(artifact: Artifact, batch: int) -> Footprint:
    decoder, sizes, runner = artifact.decoder, artifact.sizes, artifact.runner
    shapes = Shapes(
        decoder.hidden_size,
        decoder.intermediate_size,
        decoder.num_heads,
        decoder.vocab_size,
        decoder.num_kv_heads,
        decoder.head_dim,
    )
    if runner in ENGINES:
        masks = dict.fromkeys("attention_mask" if one.window is None else "window_mask" for one in decoder.layers)
        tensors = planned_tensors(
            layers=len(decoder.layers),
            shapes=shapes,
            masks=tuple(masks),
            context_length=decoder.max_position,
            batch=batch,
        )
        return engine_footprint(tensors, shapes, runner, weights=artifact.weights)
    one_layer = decoder.kv_bytes_per_token(artifact.element) // len(decoder.layers)
    spans = [layer.window for layer in decoder.layers if _windowed(decoder, layer, runner)]
    return RUNTIMES[runner].footprint(
        shapes,
        weights=artifact.weights,
        kv_per_token=one_layer * (len(decoder.layers) - len(spans)),
        windows=tuple((one_layer, span or 0) for span in spans),
        # These runners keep only the context's rows of the RoPE tables; for others the tables count as weights.
        rope_per_token=sizes.rope // decoder.max_position if runner in {"cpu", "onnxruntime"} else 0,
        # The number of cores of the device is unknown: this machine's is used.
        threads=usable_cores(),
    )


def _windowed(decoder: Decoder, layer: Layer, runner: str) -> bool:
    return runner == "mlx" and layer.window is not None and decoder.model_type in _WINDOWED_BY_MLX


def memory_plan(
    artifact: Artifact, target: Target, context: int | None, longest: int, parallel: int
) -> tuple[Plan, int]:
    """Return the plan, and how many sequences an engine decodes in one execution: as many as the device builds it for.

    Args:
        artifact: The artifact.
        target: The device.
        context: Tokens of a sequence; None takes the model's, or the longest that fits.
        longest: The model's own context.
        parallel: Sequence slots.
    """
    memory = None if target.memory_gib is None else int(target.memory_gib * GIB)
    plan = Plan(artifact.footprint(), context or longest, parallel, longest, memory, int(target.reserve_gib * GIB))
    batch = 1
    if artifact.runner in ENGINES and parallel > 1:
        several = artifact.footprint(MAX_BATCH)
        batch = engine_batch(parallel, several, available=plan.available, context_length=plan.context)
        plan = replace(plan, footprint=artifact.footprint(batch))
    if context is None and plan.fits is False:
        plan = replace(plan, context=plan.longest_context(parallel) or min(_MIN_CONTEXT, longest))
    return plan, batch


def notes_on_batch(artifact: Artifact, plan: Plan, batch: int, context: int) -> tuple[str, ...]:
    """Say what an engine's second copy of the weights is for, or why there is none.

    Args:
        artifact: The artifact.
        plan: From `memory_plan`.
        batch: From `memory_plan`.
        context: Tokens of a sequence as wanted, which may not fit.
    """
    if artifact.runner not in ENGINES or plan.available is None:
        return ()
    if batch > 1:
        note = (
            f"up to {batch} sequences decode in one execution: for that, the engine holds its INT4 weights in a second "
            f"order, at most all weights twice, as counted here; that of `edgekit build --batch 1` holds them once"
        )
        return (note,)
    if plan.parallel > 1:
        return ("sequences decode one after another: memory does not hold the weights twice, as batches take",)
    several = artifact.footprint(MAX_BATCH)
    if engine_batch(MAX_BATCH, several, available=plan.available, context_length=context) == 1:
        return ()
    more = (several.weights - plan.footprint.weights) / GIB
    note = (
        f"the device builds its engine for up to {MAX_BATCH} sequences in one execution, unless fewer are configured; "
        f"that takes up to {more:.2f} GiB more: plan with {option('parallel', MAX_BATCH)}"
    )
    return (note,)
