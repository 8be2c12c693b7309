"""Runs the `onnxruntime` dialect on the CPU: several sequence slots in one pass over the weights, where that is faster.

Past and present are bound to the same buffer, so a step appends rows without copying, and truncating only changes the
slot's length. `edgekit.export.writers.onnx.ort` defines the graph's inputs and outputs.

**Exact steps.** onnxruntime's kernels compute rows in pairs. The last of an odd number of rows, and attention of a
single row, take other kernels whose sums differ in the last bit, which quantizing activations to 8 bits amplifies to
differences of 0.5 in logits. With an even number of rows per slot, every row is bit-identical however the sequence is
divided and whatever else is in the pass. So all chunks, except single tokens that need not be exact, are padded to an
even number with a token that the slot's next token overwrites. (Measured with onnxruntime 1.32 on x86-64 with AVX-512.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk
from edgekit.runners.graph_runner import GraphRunner
from edgekit.runners.kv_cache import KvCache
from edgekit.runners.passes import Pass, plan_passes
from edgekit.runners.slots import FloatArray, TokenArray

__all__ = ["OnnxRuntimeRunner"]

# Passes of up to so many rows per slot recur in every step: their tensors are bound once and reused.
_REUSED_ROWS = 2
# Maximum rows per slot in a pass over several slots: more would mostly be padding.
_MAX_BATCHED_ROWS = 32


@dataclass(frozen=True, slots=True)
class _Step:
    """The tensors of a pass over B slots with S rows each, R of which give logits.

    A binding only holds addresses: the arrays must outlive it.
    """

    tokens: TokenArray
    """`[B, S]`"""
    rows: TokenArray
    """`[B, R, 1]`"""
    ends: npt.NDArray[np.int32]
    """`[B]`: length of each slot's cache after the pass, minus one."""
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
    _kv: KvCache
    _rounds_activations: ClassVar[bool] = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        slots = self._limits.sequence_slots
        # Slot i owns rows 2i and 2i + 1, so that no pass of a step overwrites another's logits.
        self._logits = np.empty((slots * _REUSED_ROWS, self._limits.vocab_size), np.float32)
        self._steps: dict[tuple[Pass, int], _Step] = {}
        self._caches: dict[tuple[int, int], list[Any]] = {}
        # In graphs of older bundles, `logits_index` is `[rows]`, without a batch dimension.
        self._has_batch = len(self._shapes["logits_index"]) == 3
        self._takes_counts = "query_seqlens" in self._shapes
        self._max_batched_rows = _MAX_BATCHED_ROWS if self._takes_counts else 1 if self._has_batch else 0

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._steps.clear()
        self._caches.clear()
        super().close()

    def _positions(self, context: int) -> tuple[int, int]:
        # A padded chunk ends one position past the context, for which the RoPE tables of older graphs have no row.
        self._rope_positions = int(self._metadata.get("edgekit.positions", self._metadata["edgekit.context_length"]))
        return min(context, self._rope_positions - 1), min(context + 1, self._rope_positions)

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        by_slot = {chunk.slot: (chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)}
        rows = {slot: _rows(chunk, ids.size) for slot, (chunk, ids) in by_slot.items()}
        last = min(self._kv.capacity, self._rope_positions)
        free_rows = [last - length for length in self._lengths]
        logits: dict[int, FloatArray] = {}
        for group in plan_passes(rows, free_rows, max_batched_rows=self._max_batched_rows):
            logits |= self._pass(group, {s: by_slot[s] for s in range(group.low, group.high) if s in by_slot}, rows)
        for slot, (_, ids) in by_slot.items():
            self._lengths[slot] += ids.size
        return [logits[chunk.slot] for chunk in chunks]

    def _pass(
        self, group: Pass, by_slot: dict[int, tuple[Chunk, TokenArray]], rows: dict[int, int]
    ) -> dict[int, FloatArray]:
        """Run the slots of a pass, and return the logits of each."""
        batch, everything = group.high - group.low, any(chunk.logits == "all" for chunk, _ in by_slot.values())
        # The rows of the head must be even too.
        head_rows = group.rows if everything or group.rows == 1 else 1 + batch % 2
        step = self._prepared(group, head_rows)
        for slot in range(group.low, group.high):
            at, length = slot - group.low, self._lengths[slot]
            if slot in by_slot:
                _, ids = by_slot[slot]
                step.tokens[at, : ids.size] = ids
                step.counts[at] = rows[slot]
                step.ends[at] = length + rows[slot] - 1
                # If only the last row is wanted, a second one pads the number to even.
                step.rows[at, :, 0] = np.arange(head_rows) if everything else ids.size - 1
            elif self._takes_counts:
                # Idle slots write nothing, but an empty slot needs one row.
                step.counts[at] = length == 0
                step.ends[at] = max(length - 1, 0)
            else:
                # Idle slots write a row that the slot's next token overwrites.
                step.ends[at] = length
        step.total[...] = step.ends.max() + 1
        self._session.run_with_iobinding(step.binding)
        return {
            slot: _wanted(chunk, step.logits[slot - group.low], ids.size if everything else 1)
            for slot, (chunk, ids) in by_slot.items()
        }

    def _prepared(self, group: Pass, head_rows: int) -> _Step:
        key = group, head_rows
        if (cached := self._steps.get(key)) is not None:
            return cached
        batch, reuse = group.high - group.low, group.rows <= _REUSED_ROWS
        if reuse:
            logits = self._logits[_REUSED_ROWS * group.low :][: batch * head_rows].reshape(batch, head_rows, -1)
        else:
            logits = np.empty((batch, head_rows, self._limits.vocab_size), np.float32)
        step = self._new_step(group, head_rows, logits)
        if reuse:
            self._steps[key] = step
        return step

    def _new_step(self, group: Pass, head_rows: int, logits: FloatArray) -> _Step:
        batch, span = group.high - group.low, (group.low, group.high)
        if span not in self._caches:
            self._caches[span] = [self._value(array[slice(*span)]) for array in self._kv.arrays]
        tokens = np.zeros((batch, group.rows), np.int64)
        rows = np.zeros((batch, head_rows, 1), np.int64)
        ends, counts, total = np.zeros(batch, np.int32), np.zeros(batch, np.int32), np.zeros((), np.int32)
        value = self._value
        inputs = {"input_ids": value(tokens), "seqlens_k": value(ends), "total_sequence_length": value(total)}
        inputs["logits_index"] = value(rows if self._has_batch else rows[0, :, 0])
        if self._takes_counts:
            inputs["query_seqlens"] = value(counts)
        binding = self._bind(self._caches[span], inputs, value(logits))
        return _Step(tokens, rows, ends, counts, total, logits, binding)


def _rows(chunk: Chunk, tokens: int) -> int:
    """Rows that a chunk takes: an even number, except for a single token that need not be exact."""
    return 1 if tokens == 1 and not chunk.exact else tokens + tokens % 2


def _wanted(chunk: Chunk, logits: FloatArray, count: int) -> FloatArray:
    """Select the logits that a chunk wants from a slot's rows, of which the first `count` are valid."""
    if chunk.logits == "none":
        return logits[:0]
    return logits[:count] if chunk.logits == "all" else logits[count - 1 : count]
