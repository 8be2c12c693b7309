"""Runs graphs of the `optimum` dialect on the CPU: what Optimum's exporter writes, and edgekit has quantized.

    input_ids        int64 [batch, sequence]
    attention_mask   int64 [batch, past + sequence]    optional: not every architecture has it
    position_ids     int64 [batch, sequence]           optional
    logits_index     int64 [rows]                      optional: positions of `sequence` whose logits are wanted
    past_key_values.N.key, .value   [batch, heads, past, dim]
        ▼
    logits           fp32  [batch, sequence or rows, vocab]
    present.N.key, .value           [batch, heads, past + sequence, dim]

A step takes the whole cache and gives back a longer one, which is handed to the next step as it is. That costs a copy
of the cache for every step: our own `onnxruntime` dialect has none. It knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.base import Chunk, Limits, first_line
from edgekit.runners.onnxruntime import open_session

__all__ = ["OptimumRunner"]

FloatArray = npt.NDArray[np.float32]

_PAST, _PRESENT = "past_key_values.", "present."
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class OptimumRunner:
    """A `Runner` over onnxruntime's CPU provider. Memory of the KV cache is that of the tokens it holds.

    Args:
        folder: Holds `model.onnx` and its data file.
        context_length: Tokens per slot; None takes the model's own.
        sequence_slots: How many sequences may live at the same time.
        max_chunk: Most tokens in one step.
        threads: None takes one per physical core.

    Raises:
        BundleError: The folder holds no graph of this dialect.
        RunnerError: onnxruntime cannot load it, or the context is longer than the model's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        threads: int | None = None,
    ) -> None:
        session = open_session(folder, "optimum", threads=threads)
        import onnxruntime as ort

        self._session: Any = session
        self._value = ort.OrtValue.ortvalue_from_numpy
        longest = int(session.get_modelmeta().custom_metadata_map["edgekit.context_length"])
        if context_length is not None and not 0 < context_length <= longest:
            raise RunnerError(
                f"the context length must be between 1 and {longest}, not {context_length}",
                hint=f"the model was exported for {longest} tokens",
            )
        context = context_length or longest
        inputs = {value.name: value for value in session.get_inputs()}
        logits = next(value for value in session.get_outputs() if value.name == "logits")
        self._names = [name.removeprefix(_PAST) for name in inputs if name.startswith(_PAST)]
        self._steered = inputs.keys() - {_PAST + name for name in self._names}
        caches = [inputs[_PAST + name] for name in self._names]
        # Heads and width differ between keys and values, and between layers, in some architectures.
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

    @property
    def limits(self) -> Limits:
        """What this runner can do."""
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        """Append each chunk to its slot; see `Runner.run`."""
        tokens = [self._check(chunk) for chunk in chunks]
        if len({chunk.slot for chunk in chunks}) != len(chunks):
            raise RunnerError("a step takes at most one chunk per sequence slot")
        before = list(self._past)
        try:
            return [self._run(chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)]
        except Exception as error:  # onnxruntime's exceptions share no base class
            self._past = before
            raise RunnerError(f"onnxruntime failed: {first_line(error)}") from error

    def length(self, slot: int) -> int:
        """Tokens the slot holds."""
        return int(self._past[self._slot(slot)][0].shape()[2])

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on; see `Runner.truncate`."""
        held = self.length(slot)
        if not 0 <= length <= held:
            raise RunnerError(f"slot {slot} holds {held} tokens; it cannot be cut to {length}")
        if length < held:
            self._past[slot] = [self._kept(value.numpy()[:, :, :length]) for value in self._past[slot]]

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions `start:stop`: for every cache in the graph's order `[heads, positions, dim]`."""
        held = self.length(slot)
        if not 0 <= start <= stop <= held:
            raise RunnerError(f"slot {slot} holds {held} tokens, not positions {start} to {stop}")
        return b"".join(value.numpy()[0, :, start:stop].tobytes() for value in self._past[slot])

    def write_kv(self, slot: int, start: int, data: bytes) -> int:
        """Put back what `read_kv` gave; see `Runner.write_kv`."""
        held = self.length(slot)
        if start != held:
            raise RunnerError(f"slot {slot} holds {held} tokens; position {start} does not follow them")
        count, rest = divmod(len(data), self._limits.kv_bytes_per_token)
        if rest or start + count > self._limits.context_length:
            raise RunnerError(f"{len(data)} bytes are not KV cache that fits this runner at position {start}")
        longer, at = [], 0
        for (heads, dim), value in zip(self._rows, self._past[slot], strict=True):
            size = heads * count * dim
            part = np.frombuffer(data, self._dtype, size, at).reshape(1, heads, count, dim)
            longer.append(self._kept(np.concatenate([value.numpy(), part], axis=2)))
            at += size * self._dtype.itemsize
        self._past[slot] = longer
        return held + count

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._session = None
        self._past = [[] for _ in self._past]

    def _run(self, chunk: Chunk, tokens: npt.NDArray[np.int64]) -> FloatArray:
        held, count = self.length(chunk.slot), tokens.size
        rows = np.arange(count) if chunk.logits == "all" else np.array([count - 1])
        steering = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, held + count), np.int64),
            "position_ids": np.arange(held, held + count)[None],
            "logits_index": rows,
        }
        feeds = {name: self._value(array) for name, array in steering.items() if name in self._steered}
        feeds |= {_PAST + name: value for name, value in zip(self._names, self._past[chunk.slot], strict=True)}
        wanted = ["logits", *(_PRESENT + name for name in self._names)]
        logits, *present = self._session.run_with_ort_values(wanted, feeds)
        self._past[chunk.slot] = present
        result: FloatArray = logits.numpy()[0]
        if chunk.logits == "none":
            return result[:0]
        return result if "logits_index" in self._steered else result[rows]

    def _empty(self) -> list[Any]:
        return [self._kept(np.zeros((1, heads, 0, dim), self._dtype)) for heads, dim in self._rows]

    def _kept(self, array: npt.NDArray[np.generic]) -> Any:
        """A value of onnxruntime's with a copy of the array."""
        return self._value(np.ascontiguousarray(array))

    def _slot(self, slot: int) -> int:
        if self._session is None:
            raise RunnerError("the runner is closed")
        if not 0 <= slot < self._limits.sequence_slots:
            raise RunnerError(f"there is no sequence slot {slot}; there are {self._limits.sequence_slots}")
        return slot

    def _check(self, chunk: Chunk) -> npt.NDArray[np.int64]:
        """Refuse what would harm a cache, before anything is run."""
        held, limits = self.length(chunk.slot), self._limits
        tokens = np.asarray(chunk.tokens, np.int64)
        if not 1 <= tokens.size <= limits.max_chunk:
            raise RunnerError(f"a chunk has 1 to {limits.max_chunk} tokens, not {tokens.size}")
        if held + tokens.size > limits.context_length:
            raise RunnerError(
                f"{held} + {tokens.size} tokens do not fit the context of {limits.context_length}",
                code="context_length_exceeded",
            )
        # onnxruntime would read outside the embedding.
        if int(tokens.min()) < 0 or int(tokens.max()) >= limits.vocab_size:
            raise RunnerError(f"token ids run from 0 to {limits.vocab_size - 1}")
        return tokens
