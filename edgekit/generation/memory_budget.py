"""How much KV cache there is memory for: the memory plan, with what this machine has left once the model is loaded.

    budget = available now - a prefill step's activations - a share left to the system

The sequence slots' buffers are address space only until tokens are written to them, so that the budget may be less than
all slots could hold: the engine admits by bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.memory import RUNTIMES, Shapes
from edgekit.runners.base import Limits

__all__ = ["grammar_bytes", "kv_budget", "model_shapes"]

# Of the memory that is available, for what else the system does meanwhile.
_LEFT_TO_THE_SYSTEM = 0.1
# Below this a chat is of no use; better a request that the kernel makes room for than a daemon that refuses all.
_LEAST_TOKENS = 512
# Measured with llguidance 1.9.1: 151,936 tokens take 63 MiB, and 76 MiB while they are built; 49,152 take 22 and 26.
_GRAMMARS_PER_TOKEN = 550


def kv_budget(limits: Limits, runtime: str, shapes: Shapes | None, available: int | None) -> int:
    """Return how many bytes of KV cache there may be.

    Args:
        limits: Of the loaded runner.
        runtime: Its name in `RUNTIMES`.
        shapes: The model's sizes; None counts no activations.
        available: Bytes that the process could still have (`machine.available_bytes`); None if nobody knows.

    Returns:
        At most what the slots hold, and room for a few hundred tokens at least.
    """
    whole = limits.sequence_slots * limits.context_length * limits.kv_bytes_per_token
    if available is None:
        return whole
    step = 0
    if shapes is not None and runtime in RUNTIMES:
        figures = RUNTIMES[runtime]
        step = figures.activations(shapes) + figures.activations_per_token(shapes) * limits.context_length
    room = int(available * (1 - _LEFT_TO_THE_SYSTEM)) - step
    least = min(whole, _LEAST_TOKENS * limits.kv_bytes_per_token)
    return max(least, min(whole, room))


def grammar_bytes(vocab_size: int) -> int:
    """Return what grammars need of a tokenizer with so many tokens, at its most, while it is built."""
    return _GRAMMARS_PER_TOKEN * vocab_size


def model_shapes(folder: Path) -> Shapes | None:
    """Read a bundle's sizes from its `config.json`; None if it has none or says too little."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return Shapes(
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            heads=int(config["num_attention_heads"]),
            vocab=int(config["vocab_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
