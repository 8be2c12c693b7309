"""Runs graphs of the `optimum` dialect on the CPU: written by Optimum's exporter and quantized by edgekit.

    input_ids        int64 [batch, sequence]
    attention_mask   int64 [batch, past + sequence]    optional: some architectures lack it
    position_ids     int64 [batch, sequence]           optional
    logits_index     int64 [rows]                      optional: positions of `sequence` whose logits are wanted
    past_key_values.N.key, .value   [batch, heads, past, dim]
        ▼
    logits           fp32  [batch, sequence or rows, vocab]
    present.N.key, .value           [batch, heads, past + sequence, dim]

A step takes the full cache and returns a longer one, which is passed to the next step as it is. So every step copies
the cache, unlike in edgekit's `onnxruntime` dialect. Sequences run one after the other; `Chunk.exact` is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runners.base import Chunk, Limits
from edgekit.runners.session import context_of, open_session
from edgekit.runners.slots import FloatArray, SlotRunner, TokenArray

__all__ = ["OptimumRunner"]

_PAST, _PRESENT = "past_key_values.", "present."
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class OptimumRunner(SlotRunner):
    """A `Runner` over onnxruntime's CPU provider. The KV cache takes memory only for the tokens in it.

    Args:
        folder: Contains `model.onnx` and its data file.
        context_length: Tokens per slot; default: the model's context length.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step.
        threads: Default: one per usable core (`cores.py`).
        shares_cores: Another runner computes between the steps of this one.

    Raises:
        BundleError: The folder has no graph of this dialect.
        RunnerError: onnxruntime cannot load it, or the context is longer than the model's.
    """

    _backend = _runtime = "onnxruntime"

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        threads: int | None = None,
        shares_cores: bool = False,
    ) -> None:
        session = open_session(folder, "optimum", threads=threads, shares_cores=shares_cores)
        import onnxruntime as ort

        self._session: Any = session
        self._value = ort.OrtValue.ortvalue_from_numpy
        context = context_of(session, context_length)
        inputs = {value.name: value for value in session.get_inputs()}
        logits = next(value for value in session.get_outputs() if value.name == "logits")
        self._names = [name.removeprefix(_PAST) for name in inputs if name.startswith(_PAST)]
        self._inputs = inputs.keys() - {_PAST + name for name in self._names}
        caches = [inputs[_PAST + name] for name in self._names]
        # In some architectures, heads and width differ between keys and values, or between layers.
        self._rows = [(int(value.shape[1]), int(value.shape[3])) for value in caches]
        self._dtype = _DTYPES[caches[0].type]
        self._limits = Limits(
            context_length=context,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context),
            vocab_size=int(logits.shape[2]),
            kv_bytes_per_token=sum(heads * dim for heads, dim in self._rows) * self._dtype.itemsize,
        )
        self._past = [self._empty() for _ in range(sequence_slots)]

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._closed = True
        self._session = None
        self._past = []

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        return [self._run(chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)]

    def _length(self, slot: int) -> int:
        return int(self._past[slot][0].shape()[2])

    def _truncate(self, slot: int, length: int) -> None:
        if length < self._length(slot):
            self._past[slot] = [self._copied(value.numpy()[:, :, :length]) for value in self._past[slot]]

    def _read(self, slot: int, start: int, stop: int) -> bytes:
        """Concatenate `[heads, positions, dim]` of every cache, in the graph's order."""
        return b"".join(head[start:stop].data for value in self._past[slot] for head in value.numpy()[0])

    def _write(self, slot: int, count: int, data: memoryview) -> None:
        longer, at = [], 0
        for (heads, dim), value in zip(self._rows, self._past[slot], strict=True):
            size = heads * count * dim
            part = np.frombuffer(data, self._dtype, size, at).reshape(1, heads, count, dim)
            longer.append(self._copied(np.concatenate([value.numpy(), part], axis=2)))
            at += size * self._dtype.itemsize
        self._past[slot] = longer

    def _snapshot(self) -> list[Any]:
        return list(self._past)

    def _restore(self, before: list[Any], chunks: Sequence[Chunk]) -> None:  # noqa: ARG002
        self._past = before

    def _run(self, chunk: Chunk, tokens: TokenArray) -> FloatArray:
        length, count = self._length(chunk.slot), tokens.size
        rows = np.arange(count) if chunk.logits == "all" else np.array([count - 1])
        candidates = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, length + count), np.int64),
            "position_ids": np.arange(length, length + count)[None],
            "logits_index": rows,
        }
        feeds = {name: self._value(array) for name, array in candidates.items() if name in self._inputs}
        feeds |= {_PAST + name: value for name, value in zip(self._names, self._past[chunk.slot], strict=True)}
        wanted = ["logits", *(_PRESENT + name for name in self._names)]
        logits, *present = self._session.run_with_ort_values(wanted, feeds)
        self._past[chunk.slot] = present
        result: FloatArray = logits.numpy()[0]
        if chunk.logits == "none":
            return result[:0]
        return result if "logits_index" in self._inputs else result[rows]

    def _empty(self) -> list[Any]:
        return [self._copied(np.zeros((1, heads, 0, dim), self._dtype)) for heads, dim in self._rows]

    def _copied(self, array: npt.NDArray[np.generic]) -> Any:
        """Copy an array into an OrtValue."""
        return self._value(np.ascontiguousarray(array))
