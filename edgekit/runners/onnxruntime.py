"""Runs the `onnxruntime` dialect on the CPU: several sequence slots in one pass over the weights, where it pays.

Past and present are bound to the same buffer, so a step writes the new rows behind the old ones and copies nothing;
forgetting is a matter of counting. It knows the dialect's inputs and outputs (`edgekit.export.writers.onnx.ort` writes
them) and nothing of text.

**Exact steps.** onnxruntime's kernels compute rows in pairs. The last of an odd number of rows, and attention of a
single row, take other kernels whose sums differ in the last bit; rounding activations to 8 bits makes that differences
of 0.5 in logits. With an even number of rows for each slot every row is the same, bit by bit, wherever the sequence is
cut and whatever else is in the pass. So all chunks but single tokens that need not be exact are padded to an even
number with a token that the slot's next one overwrites. (Measured with onnxruntime 1.32 on x86-64 with AVX-512.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.graph_runner import GraphRunner
from edgekit.runners.passes import Pass, plan_passes
from edgekit.runners.slots import FloatArray, TokenArray

__all__ = ["OnnxRuntimeRunner"]

# Passes of so few rows come again and again: what they are told is bound once and refilled.
_KEPT_ROWS = 2
# Where graphs let several slots have several rows each: more would mostly be padding.
_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class _Step:
    """The tensors of a pass over B slots with S rows each, of which R give logits.

    A binding holds addresses only: the arrays must live as long as it does.
    """

    tokens: TokenArray
    """`[B, S]`"""
    rows: TokenArray
    """`[B, R, 1]`"""
    ends: npt.NDArray[np.int32]
    """`[B]`: positions in each slot's cache after the pass, minus one."""
    counts: npt.NDArray[np.int32]
    """`[B]`: how many of a slot's rows are tokens."""
    total: npt.NDArray[np.int32]
    """`[]`: the largest of `ends`, plus one."""
    logits: FloatArray
    """`[B, R, vocab]`"""
    binding: Any


class OnnxRuntimeRunner(GraphRunner):
    """A `Runner` over onnxruntime's CPU provider; arguments as for `GraphRunner`."""

    _dialect: ClassVar[str] = "onnxruntime"
    _batched: ClassVar[bool] = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        slots = self._limits.sequence_slots
        # Each slot has the rows 2·slot and 2·slot + 1, so that no pass of a step overwrites another's.
        self._logits = np.empty((slots * _KEPT_ROWS, self._limits.vocab_size), np.float32)
        self._steps: dict[tuple[Pass, int], _Step] = {}
        self._caches: dict[tuple[int, int], list[Any]] = {}
        # Bundles of before the batch had a say hold graphs whose rows are `[rows]`.
        self._has_batch = len(self._shapes["logits_index"]) == 3
        self._told = "query_seqlens" in self._shapes
        self._together = _TOGETHER if self._told else 1 if self._has_batch else 0

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._steps.clear()
        self._caches.clear()
        super().close()

    def _positions(self, context: int) -> tuple[int, int]:
        # A padded chunk ends one position behind the context: older graphs cannot turn a token there.
        self._turned = int(self._metadata.get("edgekit.positions", self._metadata["edgekit.context_length"]))
        return min(context, self._turned - 1), min(context + 1, self._turned)

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        mine = {chunk.slot: (chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)}
        rows = {slot: _rows(chunk, ids.size) for slot, (chunk, ids) in mine.items()}
        last = min(self._kv.capacity, self._turned)
        room = [last - length for length in self._lengths]
        logits: dict[int, FloatArray] = {}
        for group in plan_passes(rows, room, together=self._together):
            logits |= self._pass(group, {s: mine[s] for s in range(group.low, group.high) if s in mine}, rows)
        for slot, (_, ids) in mine.items():
            self._lengths[slot] += ids.size
        return [logits[chunk.slot] for chunk in chunks]

    def _pass(
        self, group: Pass, mine: dict[int, tuple[Chunk, TokenArray]], rows: dict[int, int]
    ) -> dict[int, FloatArray]:
        """Run the slots of a pass, and give each one's logits."""
        batch, everything = group.high - group.low, any(chunk.logits == "all" for chunk, _ in mine.values())
        # The head's rows must be even too.
        heads = group.rows if everything or group.rows == 1 else 1 + batch % 2
        step = self._prepared(group, heads)
        for slot in range(group.low, group.high):
            at, held = slot - group.low, self._lengths[slot]
            if slot in mine:
                _, ids = mine[slot]
                step.tokens[at, : ids.size] = ids
                step.counts[at] = rows[slot]
                step.ends[at] = held + rows[slot] - 1
                # A second row, where the last one alone is wanted, is there to make the number even.
                step.rows[at, :, 0] = np.arange(heads) if everything else ids.size - 1
            elif self._told:
                # Nothing is written; but a slot with nothing in it must have something.
                step.counts[at] = held == 0
                step.ends[at] = max(held - 1, 0)
            else:
                # A token that the slot's next one overwrites.
                step.ends[at] = held
        step.total[...] = step.ends.max() + 1
        self._session.run_with_iobinding(step.binding)
        return {
            slot: _wanted(chunk, step.logits[slot - group.low], ids.size if everything else 1)
            for slot, (chunk, ids) in mine.items()
        }

    def _prepared(self, group: Pass, heads: int) -> _Step:
        key = group, heads
        if (kept := self._steps.get(key)) is not None:
            return kept
        batch, keep = group.high - group.low, group.rows <= _KEPT_ROWS
        if keep:
            place = self._logits[_KEPT_ROWS * group.low :][: batch * heads]
            logits = place.reshape(batch, heads, -1)
        else:
            logits = np.empty((batch, heads, self._limits.vocab_size), np.float32)
        step = self._made(group, heads, logits)
        if keep:
            self._steps[key] = step
        return step

    def _made(self, group: Pass, heads: int, logits: FloatArray) -> _Step:
        batch, span = group.high - group.low, (group.low, group.high)
        if span not in self._caches:
            self._caches[span] = self._cache_of(*span)
        tokens = np.zeros((batch, group.rows), np.int64)
        rows = np.zeros((batch, heads, 1), np.int64)
        ends, counts, total = np.zeros(batch, np.int32), np.zeros(batch, np.int32), np.zeros((), np.int32)
        value = self._value
        inputs = {"input_ids": value(tokens), "seqlens_k": value(ends), "total_sequence_length": value(total)}
        inputs["logits_index"] = value(rows if self._has_batch else rows[0, :, 0])
        if self._told:
            inputs["query_seqlens"] = value(counts)
        binding = self._bind(self._caches[span], inputs, value(logits))
        return _Step(tokens, rows, ends, counts, total, logits, binding)


def _rows(chunk: Chunk, tokens: int) -> int:
    """Rows that a chunk's tokens take: an even number, unless one need not be exact."""
    return 1 if tokens == 1 and not chunk.exact else tokens + tokens % 2


def _wanted(chunk: Chunk, logits: FloatArray, count: int) -> FloatArray:
    """Of a slot's logits, the first `count` of which are its own, those that a chunk asks for."""
    if chunk.logits == "none":
        return logits[:0]
    return logits[:count] if chunk.logits == "all" else logits[count - 1 : count]
