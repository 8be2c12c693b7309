"""From a bundle and a configuration to a scheduler: model, draft model, memory budget, prefix cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import GenerationConfig
from edgekit.generation.draft_bundle import open_draft
from edgekit.generation.memory_budget import Loaded, draft_bytes, grammar_bytes, kv_budget, model_shapes
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.prefix import QUEUE_BYTES, DiskStore, PrefixCache, model_fingerprint
from edgekit.generation.scheduler import Scheduler
from edgekit.machine import available_bytes
from edgekit.memory import MIB
from edgekit.runners.base import Runner

__all__ = ["Shares", "open_model", "schedule", "share_memory"]

logger = logging.getLogger(__name__)


def open_model(bundle: Bundle, config: GenerationConfig) -> TextModel:
    """Load a bundle as the configuration wants it, and its draft model.

    Raises:
        BundleError: A bundle is damaged.
        ConfigError: The context is too long, or the draft model has another tokenizer.
        RunnerError: An artifact could not be loaded, or does not compute numbers.
    """
    # A wrong path need not wait for the weights of the larger model.
    draft = None if config.draft_bundle is None else open_bundle(config.draft_bundle)
    model = load_model(
        bundle,
        context_length=config.context_length,
        threads=config.threads,
        parallel=config.parallel,
        kv_bits=config.kv_cache_bits,
        shares_cores=draft is not None,
    )
    if draft is None:
        return model
    try:
        return replace(model, draft=open_draft(draft, model, bundle.path, threads=config.threads))
    except BaseException:
        model.close()
        raise


@dataclass(frozen=True, slots=True)
class Shares:
    """How the memory that is left once a model is loaded is shared out.

    Attributes:
        kv_bytes: For the KV cache in the sequence slots, the draft model's too.
        grammars: What grammars need of the tokenizer has its own share, and may be built before anybody asks.
    """

    kv_bytes: int
    grammars: bool


def share_memory(model: TextModel, bundle: Bundle, config: GenerationConfig) -> Shares:
    """Share out what memory this machine has left; call it before anything is answered.

    Grammars have a share where the rest still holds a conversation of the whole context. Where it does not, they are
    built for the first who asks for one, out of what is left to the system.

    Args:
        model: From `open_model`.
        bundle: What it was loaded from.
        config: The same.
    """
    available = available_bytes()
    whole = _kv_budget(model, bundle, config, available)
    if available is None:
        return Shares(whole, grammars=True)
    limits = model.runner.limits
    conversation = limits.context_length * limits.kv_bytes_per_token
    if model.draft is not None:
        conversation += draft_bytes(limits.context_length, model.draft.limits, config.draft_max)
    left = available - grammar_bytes(limits.vocab_size)
    rest = _kv_budget(model, bundle, config, max(0, left))
    if left < 0 or rest < min(whole, conversation):
        return Shares(whole, grammars=False)
    return Shares(rest, grammars=True)


def _kv_budget(model: TextModel, bundle: Bundle, config: GenerationConfig, available: int | None) -> int:
    if available is not None:
        # What waits to be written to disk is in memory meanwhile.
        queued = QUEUE_BYTES if config.prefix_folder is not None else 0
        available = max(0, available - config.prefix_memory_mib * MIB - queued)
    models = [_loaded(model.runner, bundle)]
    if model.draft is not None and config.draft_bundle is not None:
        models.append(_loaded(model.draft, open_bundle(config.draft_bundle)))
    budget = kv_budget(models, available)
    return budget if config.kv_cache_mib is None else min(budget, config.kv_cache_mib * MIB)


def schedule(model: TextModel, bundle: Bundle, config: GenerationConfig, shares: Shares) -> Scheduler:
    """Put a queue in front of a model that stays within its share of memory.

    Args:
        model: From `open_model`; the scheduler closes it.
        bundle: What it was loaded from.
        config: The same.
        shares: From `share_memory`.
    """
    scheduler = Scheduler(
        model,
        max_queue=config.max_queue,
        kv_budget_bytes=shares.kv_bytes,
        prefix=_prefix_cache(model, bundle, config),
        speculation=config.speculation,
        draft_max=config.draft_max,
    )
    tokens, context = scheduler.most_tokens, model.runner.limits.context_length
    if tokens < context:
        logger.warning("there is memory for %d tokens of KV cache; a conversation may have %d", tokens, context)
    return scheduler


def _loaded(runner: Runner, bundle: Bundle) -> Loaded:
    return Loaded(runner.limits, runner.backend.runtime, model_shapes(bundle.path))


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
