"""Chooses the order in which a checkpoint's matrices are read.

The order of the files is the fastest: each byte comes from the disk once (docs/decisions/0023). The self-test takes one
layer after the other. A file sorted by name has layer 10 before layer 2, so it holds some layers in memory; where they
would be too many, the layers are read in order instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.recipes.recipe import Recipe

__all__ = ["HELD_LIMIT", "held_bytes", "reading_order"]

HELD_LIMIT = 1 << 30
"""Bytes of matrices that may wait for their layer's turn."""
# Bytes per weight, scales and offsets included.
_BYTES = {4: 0.65, 8: 1.15, 16: 4.0}


def reading_order(
    decoder: Decoder, linears: Sequence[Linear], checkpoint: Checkpoint, recipe: Recipe, *, limit: int = HELD_LIMIT
) -> Sequence[Linear]:
    """Return the matrices in the order of the files; in that of the layers if too much would have to be held.

    Args:
        decoder: The model.
        linears: All matrices that the writer reads.
        checkpoint: The checkpoint.
        recipe: How they are quantized.
        limit: In bytes.
    """
    position = {name: number for number, name in enumerate(checkpoint.tensors)}
    in_files = sorted(linears, key=lambda linear: (position[linear.stored.weight], linear.first_row))
    if held_bytes(decoder, in_files, checkpoint, recipe) <= limit:
        return in_files
    turns = _turns(decoder)
    return sorted(in_files, key=lambda linear: turns[linear.stored.name])


def held_bytes(decoder: Decoder, order: Sequence[Linear], checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Return how many bytes wait for their layer's turn at most, in this order."""
    turns, head = _turns(decoder), len(decoder.layers)
    missing = {turn: sum(turns[linear.stored.name] == turn for linear in order) for turn in range(-1, head + 1)}
    waiting = dict.fromkeys(missing, 0.0)
    turn, most = -1, 0.0
    for linear in order:
        own = turns[linear.stored.name]
        missing[own] -= 1
        waiting[own] += linear.out_features * linear.in_features * _bytes_per_weight(linear, checkpoint, recipe)
        while turn <= head and not missing[turn]:
            del waiting[turn]
            turn += 1
        most = max(most, sum(size for later, size in waiting.items() if later > turn))
    return int(most)


def _turns(decoder: Decoder) -> dict[str, int]:
    """The embedding first, then the layers, then the head, by the name of the stored matrix."""
    turns = {part.stored.name: layer.index for layer in decoder.layers for part in layer.linears()}
    return {**turns, decoder.embedding.name: -1, decoder.head.name: len(decoder.layers)}


def _bytes_per_weight(linear: Linear, checkpoint: Checkpoint, recipe: Recipe) -> float:
    if recipe.keeps_float(linear):
        return _BYTES[16]
    is_float = checkpoint.tensors[linear.stored.weight].encoding in {"F16", "BF16", "F32", "F64"}
    # A quantized checkpoint's codes may be kept in 8 bits.
    return _BYTES[recipe.bits(linear) if is_float or not recipe.keeps_codes(linear) else 8]
