"""KV-cache budget: how many bytes of KV cache fit into the memory that is available once the models are loaded.

    budget = available - activations of a prefill step - a reserve for the system

The sequence slots' buffers are only address space until tokens are written to them, so the budget may be smaller than
the slots' capacity: the engine admits requests by bytes.

A draft model's KV cache counts against the same budget. Per running sequence it holds at most as many tokens as the
main model, plus the draft tokens of the current step; the main model's share is computed so that these always fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.cores import usable_cores
from edgekit.memory import RUNTIMES, Shapes
from edgekit.runners.base import Limits

__all__ = ["LoadedModel", "draft_kv_bytes", "grammar_bytes", "kv_budget", "max_tokens_with_draft", "model_shapes"]

# Share of the available memory that is left to the rest of the system.
_SYSTEM_RESERVE = 0.1
# Below this a chat is useless; better to let the kernel reclaim memory for a request than to refuse all of them.
_MIN_TOKENS = 512
# Above any model's; a larger number is a fault of the file.
_MAX_SIZE = 1 << 31
# Measured with llguidance 1.9.1: 151,936 tokens take 63 MiB, and 76 MiB while they are built; 49,152 take 22 and 26.
_GRAMMAR_BYTES_PER_TOKEN = 550


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
        return self.limits.sequence_slots * self.limits.context_length * self.limits.kv_bytes_per_token

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations of a prefill step."""
        if self.shapes is None or self.runtime not in RUNTIMES:
            return 0
        figures = RUNTIMES[self.runtime]
        per_token = figures.activations_per_token(self.shapes, usable_cores())
        return figures.activations(self.shapes) + per_token * self.limits.context_length


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
    free = int(available * (1 - _SYSTEM_RESERVE)) - sum(model.activation_bytes for model in models)
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


def model_shapes(folder: Path) -> Shapes | None:
    """Read a bundle's sizes from its `config.json`; None if the file or one of the sizes is missing or no size."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return Shapes(
            hidden=_size(config["hidden_size"]),
            intermediate=_size(config["intermediate_size"]),
            heads=_size(config["num_attention_heads"]),
            vocab=_size(config["vocab_size"]),
            kv_heads=_size(config.get("num_key_value_heads") or 0),
            head_dim=_size(config.get("head_dim") or 0),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise ValueError("not a size")
    return value
