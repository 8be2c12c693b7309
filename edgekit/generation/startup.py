"""Builds an engine worker from a bundle and a configuration: model, draft model, memory plan, prefix cache."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.check import HashProgress, check_bundle
from edgekit.bundle.shapes import model_shapes
from edgekit.config import GenerationConfig
from edgekit.generation.engine.worker import EngineWorker, Served
from edgekit.generation.first_load import check_first_load
from edgekit.generation.memory_budget import (
    LoadedModel,
    MemoryPlan,
    divide,
    draft_kv_bytes,
    grammar_bytes,
    kv_budget,
)
from edgekit.generation.model import TextModel, load_model, reload_model
from edgekit.generation.prefix import QUEUE_BYTES, DiskStore, PrefixCache, model_fingerprint
from edgekit.generation.speculative.draft_bundle import open_draft
from edgekit.jetson.energy import EnergyMeter
from edgekit.machine import available_bytes, gpu_free_bytes
from edgekit.memory import MIB, RUNTIMES, SYSTEM_RESERVE
from edgekit.runners import Explain
from edgekit.runners.base import KvNeed, KvShare, Runner

__all__ = ["MemoryPlan", "kv_share", "load_other_runner", "open_model", "plan_memory", "serve_within", "start_worker"]

logger = logging.getLogger(__name__)


def open_model(
    bundle: Bundle,
    config: GenerationConfig,
    progress: HashProgress | None = None,
    *,
    draft: Bundle | None = None,
    explain: Explain | None = None,
) -> TextModel:
    """Check and load a bundle as configured, with its draft model if one is configured.

    Args:
        bundle: The bundle.
        config: The configuration.
        progress: Called while the bundles' files are hashed: the first time, and after a change.
        draft: The draft model's bundle, if it has been opened already.
        explain: As for `choose_runner`, for the model.

    Raises:
        IncompatibleBundleError: A bundle was made for other targets.
        BundleError: A bundle is damaged.
        ConfigError: The context is too long, or the draft model has a different tokenizer.
        RunnerError: An artifact could not be loaded, produces NaN or infinity, or fails its bundle's self-test.
    """
    # Opened first: a wrong path should fail before the main model's weights are loaded.
    if draft is None and config.draft_bundle is not None:
        draft = open_bundle(config.draft_bundle)
    for one in (bundle, draft):
        if one is not None:
            check_bundle(one, ignore_compatible=config.ignore_compatible, progress=progress)
    model = load_model(
        bundle,
        context_length=config.context_length,
        runner=config.runner,
        threads=config.threads,
        parallel=config.parallel,
        kv_bits=config.kv_cache_bits,
        shares_cores=draft is not None,
        kv_share=kv_share(bundle, config, draft),
        accept=lambda runner: check_first_load(bundle, runner),
        explain=explain,
    )
    if draft is None:
        return model
    try:
        share = kv_share(draft, config)
        model = replace(model, draft=open_draft(draft, model, bundle.path, threads=config.threads, kv_share=share))
        if model.draft is not None:
            check_first_load(draft, model.draft)
    except BaseException:
        model.close()
        raise
    return model


def load_other_runner(
    model: TextModel, bundle: Bundle, config: GenerationConfig, *, runner: str, draft: Bundle | None = None
) -> TextModel:
    """Load a model's artifact into another runner, as configured, and run the bundle's self-test on it.

    The draft model is loaded again only if it has other sequence slots than the new runner.

    Args:
        model: From `open_model`; its runner may be closed.
        bundle: The bundle it was loaded from.
        config: The same configuration.
        runner: `auto`, or the name of the only runner to try.
        draft: As for `open_model`.

    Raises:
        EdgekitError: As `open_model`. What the model had stays open.
    """
    other = reload_model(
        model,
        bundle,
        runner=runner,
        threads=config.threads,
        parallel=config.parallel,
        kv_bits=config.kv_cache_bits,
        kv_share=kv_share(bundle, config, draft),
        accept=lambda loaded: check_first_load(bundle, loaded),
    )
    if other.draft is None or draft is None:
        return other
    had, has = model.runner.limits, other.runner.limits
    if (had.sequence_slots, had.context_length) == (has.sequence_slots, has.context_length):
        return other
    try:
        share = kv_share(draft, config)
        return replace(other, draft=open_draft(draft, other, bundle.path, threads=config.threads, kv_share=share))
    except BaseException:
        other.runner.close()
        raise


def kv_share(bundle: Bundle, config: GenerationConfig, draft: Bundle | None = None) -> KvShare:
    """Return how a runner that allocates its KV cache when it loads shares the memory with all that comes after it.

    Args:
        bundle: The model.
        config: The configuration.
        draft: The draft model, which is loaded later.
    """
    shapes, table = model_shapes(bundle.path), None if draft is None else draft.manifest.memory
    maximum = None if config.kv_cache_mib is None else config.kv_cache_mib * MIB

    def share(left: int, need: KvNeed) -> int:
        position, full = need.position_bytes, need.slots * need.capacity
        if table is not None:
            left -= table.weights + _draft_step_bytes(draft, need.capacity)
            position += table.kv_cache_per_token
        if need.on_card:
            # The prefix cache and the grammars are in the system's memory.
            kv_bytes = min(left, full * position)
        else:
            free = max(0, left - (0 if config.prefix_folder is None else QUEUE_BYTES))
            kv_bytes = divide(
                lambda others: min(full * position, max(0, free - others)),
                conversation=need.capacity * position,
                prefix_bytes=config.prefix_memory_mib * MIB,
                grammar_bytes=0 if shapes is None else grammar_bytes(shapes.vocab),
                available=free,
            ).kv_bytes
        kv_bytes = kv_bytes if maximum is None else min(kv_bytes, maximum)
        return max(0, kv_bytes) * need.position_bytes // position

    return share


def _draft_step_bytes(draft: Bundle | None, context: int) -> int:
    shapes = None if draft is None else model_shapes(draft.path)
    if shapes is None:
        return 0
    figures = RUNTIMES["tensorrt"]
    return figures.activations(shapes) + figures.activations_per_token(shapes) * context


def plan_memory(model: TextModel, bundle: Bundle, config: GenerationConfig, *, reserved_bytes: int = 0) -> MemoryPlan:
    """Divide this machine's available memory (`divide`); call it before the first request.

    A KV cache that is allocated already is not taken from it.

    Args:
        model: From `open_model`.
        bundle: The bundle it was loaded from.
        config: The same configuration.
        reserved_bytes: Memory that something else is going to take, such as the builder of an engine.
    """
    available = available_bytes()
    if available is not None:
        available = max(0, available - reserved_bytes)
    configured = config.prefix_memory_mib * MIB
    models = _loaded_models(model, bundle, config)
    allocated = sum(one.kv_capacity for one in models if one.limits.kv_allocated)
    growing = [one for one in models if not one.limits.kv_allocated]
    # Where a model's KV cache is on a card, that has a limit of its own.
    card = gpu_free_bytes() if any(one.runtime == "cuda" for one in growing) else None
    if available is not None and config.prefix_folder is not None:
        # The disk store's write queue is in memory too.
        available = max(0, available - QUEUE_BYTES)

    def left(others: int) -> int:
        budget = kv_budget(growing, None if available is None else max(0, available - others))
        if card is not None:
            budget = min(budget, kv_budget(growing, card))
        budget += allocated
        return budget if config.kv_cache_mib is None else min(budget, config.kv_cache_mib * MIB)

    if available is None:
        return MemoryPlan(left(0), configured, grammars=True)
    if allocated:
        available = int(available * (1 - SYSTEM_RESERVE))
        configured = min(configured, available)
    limits = model.runner.limits
    conversation = limits.context_length * limits.kv_bytes_per_token
    if model.draft is not None:
        conversation += draft_kv_bytes(limits.context_length, model.draft.limits, config.draft_max)
    return divide(
        left,
        conversation=conversation,
        prefix_bytes=configured,
        grammar_bytes=grammar_bytes(limits.vocab_size),
        available=available,
    )


def _loaded_models(model: TextModel, bundle: Bundle, config: GenerationConfig) -> list[LoadedModel]:
    models = [_loaded(model.runner, bundle.path)]
    if model.draft is not None and config.draft_bundle is not None:
        models.append(_loaded(model.draft, config.draft_bundle))
    return models


def start_worker(
    model: TextModel, bundle: Bundle, config: GenerationConfig, plan: MemoryPlan, *, meter: EnergyMeter | None = None
) -> EngineWorker:
    """Start the engine worker of a model, within its memory plan.

    Args:
        model: From `open_model`; the worker closes it.
        bundle: The bundle it was loaded from.
        config: The same configuration.
        plan: From `plan_memory`.
        meter: Measures the energy of answers; None reports none.
    """
    served = serve_within(plan, model, bundle, config)
    worker = EngineWorker(
        model,
        max_queue=config.max_queue,
        max_queue_bytes=config.max_queue_mib << 20,
        kv_budget_bytes=served.kv_budget_bytes,
        prefix=served.prefix,
        speculation=config.speculation,
        draft_max=config.draft_max,
        meter=meter,
    )
    tokens, context = worker.max_tokens, model.runner.limits.context_length
    if tokens < context:
        logger.warning("memory for %d tokens of KV cache only; the context length is %d", tokens, context)
    return worker


def serve_within(plan: MemoryPlan, model: TextModel, bundle: Bundle, config: GenerationConfig) -> Served:
    """Return what a worker is to serve a model with; it opens the prefix cache.

    Args:
        plan: From `plan_memory`.
        model: The model.
        bundle: The bundle it was loaded from.
        config: The same configuration.
    """
    if plan.prefix_bytes < config.prefix_memory_mib * MIB:
        left, wanted = plan.prefix_bytes // MIB, config.prefix_memory_mib
        logger.warning("memory for a prefix cache of %d MiB only; prefix_memory_mib is %d", left, wanted)
    return Served(model, plan.kv_bytes, _prefix_cache(model, bundle, config, plan.prefix_bytes))


def _loaded(runner: Runner, folder: Path) -> LoadedModel:
    return LoadedModel(runner.limits, runner.backend.runtime, model_shapes(folder))


def _prefix_cache(model: TextModel, bundle: Bundle, config: GenerationConfig, memory_bytes: int) -> PrefixCache | None:
    """Return the configured prefix cache; None if it is turned off or there is no memory for one."""
    if not memory_bytes and config.prefix_folder is None:
        return None
    fingerprint = model_fingerprint(bundle.manifest, model.runner)
    store = None
    if config.prefix_folder is not None:
        store = DiskStore(config.prefix_folder, max_bytes=config.prefix_disk_mib * MIB, fingerprint=fingerprint)
    return PrefixCache(
        store,
        memory_bytes=memory_bytes,
        kv_bytes_per_token=model.runner.limits.kv_bytes_per_token,
        fingerprint=fingerprint,
    )
