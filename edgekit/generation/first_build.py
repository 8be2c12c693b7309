"""Decides whether the start builds a bundle's TensorRT engine, and whether the model may be loaded meanwhile."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.shapes import model_shapes
from edgekit.config import GenerationConfig
from edgekit.cores import usable_cores
from edgekit.errors import EdgekitError, RunnerError
from edgekit.generation.engine_wanted import may_have_engine
from edgekit.machine import available_bytes
from edgekit.memory import GIB, RUNTIMES, SYSTEM_RESERVE
from edgekit.runners.tensorrt.build_record import MAX_UNFINISHED, BuildRecords, record_key
from edgekit.runners.tensorrt.limits import engine_limits
from edgekit.runners.tensorrt.open import check_driver, find_engine, library_of
from edgekit.runners.tensorrt.prepare import BuildPlan, plan_build
from edgekit.target import Target

__all__ = ["FirstBuild", "plan_first_build"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FirstBuild:
    """A build that is to be made.

    Attributes:
        plan: The engine.
        key: Of its record (`build_record`).
        memory_bytes: Memory that the build may take beside the loaded model; None if no model must be loaded meanwhile.
    """

    plan: BuildPlan
    key: str
    memory_bytes: int | None


def plan_first_build(
    bundle: Bundle,
    config: GenerationConfig,
    here: Target,
    records: BuildRecords,
    *,
    draft: Bundle | None = None,
) -> FirstBuild | None:
    """Return the build that a start must make; None if there is nothing to build, or nothing to build it with.

    Args:
        bundle: The bundle, whose files are verified.
        config: The configuration.
        here: This machine.
        records: What became of earlier builds.
        draft: The draft model's bundle.

    Raises:
        EdgekitError: There is something to build, and it is not built; the message is the reason.
    """
    capability = here.compute_capability
    if capability is None or not may_have_engine(bundle, config):
        return None
    limits = engine_limits(bundle, here, context_length=config.context_length, parallel=config.parallel)
    try:
        # nvidia-smi finds GPUs in a container, too, that was given no driver to compute with.
        check_driver()
        plan = plan_build(bundle, compute_capability=capability, limits=limits, prefer=library_of(bundle))
    except EdgekitError as error:
        if error.code == "missing_extra":
            return None  # the reason why no engine is loaded, too
        raise
    if _has_engine(bundle, plan):
        return None
    key = record_key(plan.wanted)
    _refuse_again(records, key)
    memory_bytes = None if config.runner == "tensorrt" else _beside(bundle, plan, draft)
    if memory_bytes is None:
        # Says so if it cannot be built at all.
        plan.choose_segments(available_bytes())
    return FirstBuild(plan, key, memory_bytes)


def _has_engine(bundle: Bundle, plan: BuildPlan) -> bool:
    """Whether an engine is there that runs on this GPU and holds the context."""
    try:
        _, stored = find_engine(bundle.path, plan.wanted.compute_capability)
    except EdgekitError:
        return False
    engine = stored.engine
    return (
        engine.compute_capability == plan.wanted.compute_capability
        and engine.context_length >= plan.limits.context_length
    )


def _refuse_again(records: BuildRecords, key: str) -> None:
    """Refuse a build that failed before.

    Raises:
        RunnerError: It did.
    """
    record = records.get(key)
    reason = record.failure
    if not reason and record.unfinished >= MAX_UNFINISHED:
        reason = f"{record.unfinished} builds in a row ended with the daemon itself"
    if reason:
        raise RunnerError(
            f"{reason} (at an earlier start; not tried again)",
            hint=f"to try it again, remove {records.path} and restart; another bundle, library or JetPack is tried",
            code="build_refused",
        )


def _beside(bundle: Bundle, plan: BuildPlan, draft: Bundle | None) -> int | None:
    """The memory that the build may take beside the model on the CPU; None if both do not fit."""
    available = available_bytes()
    if available is None:
        # Not Linux, where TensorRT does not exist: nothing is known that speaks against it.
        return 1 << 62
    context = plan.limits.context_length
    model_bytes = sum(_loaded_bytes(one, context) for one in (bundle, draft) if one is not None)
    rest = int(available * (1 - SYSTEM_RESERVE)) - model_bytes
    try:
        return plan.needed_bytes(plan.choose_segments(rest))
    except RunnerError:
        logger.info(
            "%.1f GiB are available, too little for the model (%.1f) and the builder of its engine: the engine is "
            "built before the model is loaded",
            available / GIB,
            model_bytes / GIB,
        )
        return None


def _loaded_bytes(bundle: Bundle, context_length: int) -> int:
    """What a model takes on the CPU, with one conversation of the full context length."""
    memory, shapes = bundle.manifest.memory, model_shapes(bundle.path)
    if shapes is None:
        return memory.weights + memory.kv_cache_per_token * context_length
    footprint = RUNTIMES["cpu"].footprint(
        shapes, weights=memory.weights, kv_per_token=memory.kv_cache_per_token, threads=usable_cores()
    )
    return footprint.total(context_length)
