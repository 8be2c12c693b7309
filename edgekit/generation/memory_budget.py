"""How much KV cache there is memory for: the memory plan, with what this machine has left once the model is loaded.

    budget = available now - a prefill step's activations - a share left to the system

The sequence slots' buffers are address space only until tokens are written to them, so that the budget may be less than
all slots could hold: the engine admits by bytes.

A draft model's KV cache comes out of the same budget. It holds for each running answer no more tokens than the larger
model does, but for those it is just guessing; so the larger model gets a share in which there is always room for that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.memory import RUNTIMES, Shapes
from edgekit.runners.base import Limits
from edgekit.runners.cores import usable_cores

__all__ = ["Loaded", "draft_bytes", "grammar_bytes", "kv_budget", "model_shapes", "tokens_beside_draft"]

# Of the memory that is available, for what else the system does meanwhile.
_LEFT_TO_THE_SYSTEM = 0.1
# Below this a chat is of no use; better a request that the kernel makes room for than a daemon that refuses all.
_LEAST_TOKENS = 512
# Measured with llguidance 1.9.1: 151,936 tokens take 63 MiB, and 76 MiB while they are built; 49,152 take 22 and 26.
_GRAMMARS_PER_TOKEN = 550


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory.

    Attributes:
        limits: Of its runner.
        runtime: The runner's name in `RUNTIMES`.
        shapes: The model's sizes; None counts no activations.
    """

    limits: Limits
    runtime: str
    shapes: Shapes | None

    @property
    def whole(self) -> int:
        """Bytes of KV cache that its slots can hold."""
        return self.limits.sequence_slots * self.limits.context_length * self.limits.kv_bytes_per_token

    @property
    def step(self) -> int:
        """Bytes of activations of a prefill step."""
        if self.shapes is None or self.runtime not in RUNTIMES:
            return 0
        figures = RUNTIMES[self.runtime]
        per_token = figures.activations_per_token(self.shapes, usable_cores())
        return figures.activations(self.shapes) + per_token * self.limits.context_length


def kv_budget(models: Sequence[Loaded], available: int | None) -> int:
    """Return how many bytes of KV cache there may be, of all models together.

    Args:
        models: All of this process; their weights are in memory already.
        available: Bytes that the process could still have (`machine.available_bytes`); None if nobody knows.

    Returns:
        At most what the slots hold, and room for a few hundred tokens at least.
    """
    whole = sum(model.whole for model in models)
    if available is None:
        return whole
    # A runtime keeps the memory of its largest step, so that they all count.
    room = int(available * (1 - _LEFT_TO_THE_SYSTEM)) - sum(model.step for model in models)
    least = min(whole, _LEAST_TOKENS * sum(model.limits.kv_bytes_per_token for model in models))
    return max(least, min(whole, room))


def grammar_bytes(vocab_size: int) -> int:
    """Return what grammars need of a tokenizer with so many tokens, at its most, while it is built."""
    return _GRAMMARS_PER_TOKEN * vocab_size


def draft_bytes(tokens: int, draft: Limits, ahead: int) -> int:
    """Return how many bytes of KV cache a draft model has at most.

    Args:
        tokens: KV cache of the larger model, in all its slots.
        draft: Of the draft model's runner.
        ahead: Tokens that are drafted at most.
    """
    slots = draft.sequence_slots
    return min(tokens + slots * ahead, slots * draft.context_length) * draft.kv_bytes_per_token


def tokens_beside_draft(budget: int, limits: Limits, draft: Limits, ahead: int) -> int:
    """Return how many tokens the larger model may hold so that both models' KV cache stays within a budget.

    Args:
        budget: Bytes.
        limits: Of the larger model's runner.
        draft: Of the draft model's.
        ahead: Tokens that are drafted at most.
    """
    own, other = max(1, limits.kv_bytes_per_token), draft.kv_bytes_per_token
    each = (budget - draft.sequence_slots * ahead * other) // (own + other)
    # Where the draft model's slots are short they may be full all the same.
    short = (budget - draft.sequence_slots * draft.context_length * other) // own
    return max(0, each, short)


def model_shapes(folder: Path) -> Shapes | None:
    """Read a bundle's sizes from its `config.json`; None if it has none or says too little."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return Shapes(
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            heads=int(config["num_attention_heads"]),
            vocab=int(config["vocab_size"]),
            kv_heads=int(config.get("num_key_value_heads") or 0),
            head_dim=int(config.get("head_dim") or 0),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
