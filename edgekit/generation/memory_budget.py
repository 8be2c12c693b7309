"""KV-cache budget: how many bytes of KV cache fit into the memory that is available once the models are loaded.

    budget = available - activations of a prefill step - a reserve for the system

The sequence slots' buffers are only address space until tokens are written to them, so the budget may be smaller than
the slots' capacity: the engine admits requests by bytes. TensorRT's runner allocates its KV cache when it loads, and is
told beforehand how much of the memory it may have (`startup.kv_share`): then the budget is what it has.

A draft model's KV cache counts against the same budget. Per running sequence it holds at most as many tokens as the
main model, plus the draft tokens of the current step; the main model's share is computed so that these always fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.cores import usable_cores
from edgekit.memory import RUNTIMES, SYSTEM_RESERVE, Shapes
from edgekit.runners.base import Limits

__all__ = [
    "LoadedModel",
    "MemoryPlan",
    "divide",
    "draft_kv_bytes",
    "grammar_bytes",
    "kv_budget",
    "max_tokens_with_draft",
]

# Below this a chat is useless; better to let the kernel reclaim memory for a request than to refuse all of them.
_MIN_TOKENS = 512
# Measured with llguidance 1.9.1: 151,936 tokens take 38 MiB, and 55 MiB while they are built; 49,152 take 13 and 20.
_GRAMMAR_BYTES_PER_TOKEN = 420


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        limits: Its runner's.
        runtime: The runner's name in `RUNTIMES`.
        shapes: The model's sizes; None counts no activations.
    """

    limits: Limits
    runtime: str
    shapes: Shapes | None

    @property
    def kv_capacity(self) -> int:
        """Bytes of KV cache that fill all its slots."""
        return self.limits.kv_positions * self.limits.kv_bytes_per_token

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations of a prefill step."""
        if self.shapes is None or self.runtime not in RUNTIMES:
            return 0
        figures = RUNTIMES[self.runtime]
        per_token = figures.activations_per_token(self.shapes, usable_cores())
        return figures.activations(self.shapes) + per_token * self.limits.context_length


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How memory is divided.

    Attributes:
        kv_bytes: KV cache in the sequence slots, the draft model's included.
        prefix_bytes: The prefix cache in memory: as configured, or less where memory is scarce.
        grammars: Memory is reserved for the grammars' vocabulary tables, so they may be built before the first request.
    """

    kv_bytes: int
    prefix_bytes: int
    grammars: bool


def divide(
    left: Callable[[int], int], *, conversation: int, prefix_bytes: int, grammar_bytes: int, available: int
) -> MemoryPlan:
    """Divide memory between KV cache, prefix cache and grammars.

    Where a conversation of the full context length does not fit beside the prefix cache, the prefix cache gets what
    the conversation leaves, or half if that is more. Memory is reserved for grammars if the rest still holds such a
    conversation. If not, they are built for the first request that needs one, out of the system's reserve.

    Args:
        left: Returns the KV cache that there can be beside so many other bytes.
        conversation: KV cache of one conversation of the full context length.
        prefix_bytes: The prefix cache as configured.
        grammar_bytes: What the grammars take.
        available: What prefix cache and grammars together may take.
    """
    most = left(0)
    wanted = min(most, conversation)
    prefix = prefix_bytes if left(prefix_bytes) >= wanted else min(prefix_bytes, max(most - wanted, most // 2))
    full, rest = left(prefix), left(prefix + grammar_bytes)
    if prefix + grammar_bytes > available or rest < min(full, conversation):
        return MemoryPlan(full, prefix, grammars=False)
    return MemoryPlan(rest, prefix, grammars=True)


def kv_budget(models: Sequence[LoadedModel], available: int | None) -> int:
    """Return the KV-cache budget of all models together, in bytes.

    Args:
        models: All models of this process, their weights already in memory.
        available: Bytes that the process can still allocate (`machine.available_bytes`); None if unknown.

    Returns:
        At most the slots' capacity, and at least a few hundred tokens.
    """
    capacity = sum(model.kv_capacity for model in models)
    if available is None:
        return capacity
    # A runtime keeps the memory of its largest step, so every model's step counts.
    free = int(available * (1 - SYSTEM_RESERVE)) - sum(model.activation_bytes for model in models)
    minimum = min(capacity, _MIN_TOKENS * sum(model.limits.kv_bytes_per_token for model in models))
    return max(minimum, min(capacity, free))


def grammar_bytes(vocab_size: int) -> int:
    """Return the peak memory of grammars for a tokenizer of this size, which is reached while they are built."""
    return _GRAMMAR_BYTES_PER_TOKEN * vocab_size


def draft_kv_bytes(tokens: int, draft: Limits, draft_max: int) -> int:
    """Return the maximum KV cache of a draft model, in bytes.

    Args:
        tokens: Tokens in all slots of the main model.
        draft: Limits of the draft model's runner.
        draft_max: Maximum draft tokens per step.
    """
    slots = draft.sequence_slots
    return min(tokens + slots * draft_max, slots * draft.context_length) * draft.kv_bytes_per_token


def max_tokens_with_draft(budget: int, limits: Limits, draft: Limits, draft_max: int) -> int:
    """Return how many tokens the main model may hold so that the KV cache of both models stays within a budget.

    Args:
        budget: Bytes.
        limits: Limits of the main model's runner.
        draft: Limits of the draft model's runner.
        draft_max: Maximum draft tokens per step.
    """
    main_bytes, draft_bytes = max(1, limits.kv_bytes_per_token), draft.kv_bytes_per_token
    growing = (budget - draft.sequence_slots * draft_max * draft_bytes) // (main_bytes + draft_bytes)
    # A draft model with a short context may have all its slots full.
    full = (budget - draft.sequence_slots * draft.context_length * draft_bytes) // main_bytes
    return max(0, growing, full)
