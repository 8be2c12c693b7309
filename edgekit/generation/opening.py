"""From a bundle and a configuration to a scheduler: model, memory budget, prefix cache."""

from __future__ import annotations

import logging

from edgekit.bundle.bundle import Bundle
from edgekit.config import GenerationConfig
from edgekit.generation.memory_budget import kv_budget, model_shapes
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.prefix import QUEUE_BYTES, DiskStore, PrefixCache, model_fingerprint
from edgekit.generation.scheduler import Scheduler
from edgekit.machine import available_bytes
from edgekit.memory import MIB

__all__ = ["open_model", "schedule"]

logger = logging.getLogger(__name__)


def open_model(bundle: Bundle, config: GenerationConfig) -> TextModel:
    """Load a bundle as the configuration wants it; errors as `load_model`."""
    return load_model(
        bundle,
        context_length=config.context_length,
        threads=config.threads,
        parallel=config.parallel,
        kv_bits=config.kv_cache_bits,
    )


def schedule(model: TextModel, bundle: Bundle, config: GenerationConfig) -> Scheduler:
    """Put a queue in front of a model that stays within this machine's memory.

    Args:
        model: From `open_model`; the scheduler closes it.
        bundle: What it was loaded from.
        config: The same.
    """
    limits = model.runner.limits
    available = available_bytes()
    if available is not None:
        # What waits to be written to disk is in memory meanwhile.
        queued = QUEUE_BYTES if config.prefix_folder is not None else 0
        available = max(0, available - config.prefix_memory_mib * MIB - queued)
    budget = kv_budget(limits, model.runner.backend.runtime, model_shapes(bundle.path), available)
    if config.kv_cache_mib is not None:
        budget = min(budget, config.kv_cache_mib * MIB)
    if budget < limits.context_length * limits.kv_bytes_per_token:
        logger.warning(
            "there is memory for %d tokens of KV cache; a conversation may have %d",
            budget // limits.kv_bytes_per_token,
            limits.context_length,
        )
    return Scheduler(
        model,
        max_queue=config.max_queue,
        kv_budget_bytes=budget,
        prefix=_prefix_cache(model, bundle, config),
        speculation=config.speculation,
    )


def _prefix_cache(model: TextModel, bundle: Bundle, config: GenerationConfig) -> PrefixCache | None:
    """Where beginnings of prompts are kept; None if the configuration wants none."""
    if not config.prefix_memory_mib and config.prefix_folder is None:
        return None
    fingerprint = model_fingerprint(bundle.manifest, model.runner)
    store = None
    if config.prefix_folder is not None:
        store = DiskStore(config.prefix_folder, max_bytes=config.prefix_disk_mib * MIB, fingerprint=fingerprint)
    return PrefixCache(
        store,
        memory_bytes=config.prefix_memory_mib * MIB,
        kv_bytes_per_token=model.runner.limits.kv_bytes_per_token,
        fingerprint=fingerprint,
    )
