"""Runs the `onnxruntime` dialect on the CPU.

Every sequence slot has its KV cache in buffers allocated once. Past and present are bound to the same buffer, so a
step writes the new rows behind the old ones and copies nothing; forgetting is a matter of counting. It knows the
dialect's inputs and outputs (`edgekit.export.writers.onnx.ort` writes them) and nothing of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError, RunnerError, missing_extra
from edgekit.runners.base import Chunk, Limits, first_line
from edgekit.runners.cores import usable_cores

__all__ = ["OnnxRuntimeRunner", "open_session"]

FloatArray = npt.NDArray[np.float32]

MODEL_FILE = "model.onnx"


def open_session(
    folder: Path, dialect: str, *, threads: int | None = None, entries: Mapping[str, str] | None = None
) -> Any:
    """Load a graph into an `onnxruntime.InferenceSession` on the CPU.

    Args:
        folder: Holds `model.onnx` and its data file.
        dialect: What the graph must be written in.
        threads: None takes one per physical core.
        entries: Further session options, by the names onnxruntime gives them.

    Raises:
        EdgekitError: `missing_extra`, if onnxruntime is not installed.
        BundleError: There is no such graph, or it is of another dialect.
        RunnerError: onnxruntime cannot load it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnxruntime") from error
    path = folder / MODEL_FILE
    if not path.is_file():
        raise BundleError(f"{folder} has no {MODEL_FILE}", hint="is this a bundle exported for the cpu target?")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A memory pattern is a second set of activations beside the first, for no speed that could be measured.
    options.enable_mem_pattern = False
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise RunnerError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    written = metadata.get("edgekit.dialect", "unknown")
    if written != dialect:
        raise BundleError(
            f"{path} is written in the `{written}` dialect, not in `{dialect}`",
            hint="export the model for this device's target",
            code="bundle_incompatible",
        )
    needed = metadata.get("edgekit.onnxruntime", "0")
    if _version(ort.__version__) < _version(needed):
        raise RunnerError(
            f"this model needs onnxruntime {needed} or later; {ort.__version__} is installed",
            hint="pip install -U onnxruntime (on Python 3.10, which later versions do not support: a newer Python)",
        )
    return session


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in text.split(".")[:2])


@dataclass(frozen=True, slots=True)
class _Step:
    """The tensors of a step over one token, bound once and refilled for every token.

    A binding holds addresses only: the arrays must live as long as it does.
    """

    tokens: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    logits: FloatArray
    binding: Any


class OnnxRuntimeRunner:
    """A `Runner` over onnxruntime's CPU provider.

    Memory of the KV cache is reserved for the whole context at once and taken by the system page by page, as
    positions are first written.

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

    _dialect: ClassVar[str] = "onnxruntime"
    _entries: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        threads: int | None = None,
    ) -> None:
        session = open_session(folder, self._dialect, threads=threads, entries=self._entries)
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
        self._names = [i.name.removeprefix("past_") for i in session.get_inputs() if i.name.startswith("past_")]
        shapes = {i.name: i.shape for i in (*session.get_inputs(), *session.get_outputs())}
        _, heads, _, head_dim = shapes[f"past_{self._names[0]}"]
        half = any("float16" in i.type for i in session.get_inputs())
        dtype = np.dtype(np.float16 if half else np.float32)
        self._cache = [np.zeros((sequence_slots, heads, context, head_dim), dtype) for _ in self._names]
        self._bound = [[self._value(cache[slot : slot + 1]) for cache in self._cache] for slot in range(sequence_slots)]
        self._lengths = [0] * sequence_slots
        # Shared by all steps: a runner is used by one thread at a time.
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._counts = {"seqlens_k": self._value(self._seqlens), "total_sequence_length": self._value(self._total)}
        # Bundles of before the batch had a say hold graphs whose rows are `[rows]`.
        self._rows_shape = (1, -1, 1) if len(shapes["logits_index"]) == 3 else (-1,)
        self._steps: dict[int, _Step] = {}
        self._limits = Limits(
            context_length=context,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context),
            vocab_size=int(shapes["logits"][2]),
            kv_bytes_per_token=len(self._names) * int(heads) * int(head_dim) * dtype.itemsize,
        )

    @property
    def limits(self) -> Limits:
        """What this runner can do."""
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        """Append each chunk to its slot; see `Runner.run`."""
        tokens = [self._check(chunk) for chunk in chunks]
        if len({chunk.slot for chunk in chunks}) != len(chunks):
            raise RunnerError("a step takes at most one chunk per sequence slot")
        before = list(self._lengths)
        try:
            # One after another: sequences of different lengths cannot share a step of more than one token.
            return [self._run(chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)]
        except Exception as error:  # as in open_session
            self._lengths = before
            raise RunnerError(f"onnxruntime failed: {first_line(error)}") from error

    def length(self, slot: int) -> int:
        """Tokens the slot holds."""
        return self._lengths[self._slot(slot)]

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on; see `Runner.truncate`."""
        if not 0 <= length <= self._lengths[self._slot(slot)]:
            raise RunnerError(f"slot {slot} holds {self._lengths[slot]} tokens; it cannot be cut to {length}")
        self._lengths[slot] = length

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions `start:stop`: `[layers * 2, kv_heads, positions, head_dim]`, as it is stored."""
        if not 0 <= start <= stop <= self._lengths[self._slot(slot)]:
            raise RunnerError(f"slot {slot} holds {self._lengths[slot]} tokens, not positions {start} to {stop}")
        return np.stack([cache[slot, :, start:stop] for cache in self._cache]).tobytes()

    def write_kv(self, slot: int, start: int, data: bytes) -> int:
        """Put back what `read_kv` gave; see `Runner.write_kv`."""
        if start != self._lengths[self._slot(slot)]:
            raise RunnerError(f"slot {slot} holds {self._lengths[slot]} tokens; position {start} does not follow them")
        count, rest = divmod(len(data), self._limits.kv_bytes_per_token)
        if rest or start + count > self._limits.context_length:
            raise RunnerError(f"{len(data)} bytes are not KV cache that fits this runner at position {start}")
        heads, head_dim = self._cache[0].shape[1], self._cache[0].shape[3]
        rows = np.frombuffer(data, self._cache[0].dtype).reshape(len(self._cache), heads, count, head_dim)
        for cache, part in zip(self._cache, rows, strict=True):
            cache[slot, :, start : start + count] = part
        self._lengths[slot] = start + count
        return start + count

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._session = None
        self._steps.clear()
        self._bound.clear()
        self._cache.clear()

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self._limits.sequence_slots:
            raise RunnerError(f"there is no sequence slot {slot}; there are {self._limits.sequence_slots}")
        return slot

    def _check(self, chunk: Chunk) -> npt.NDArray[np.int64]:
        """Refuse what would harm a cache, before anything is run."""
        held, limits = self.length(chunk.slot), self._limits
        if self._session is None:
            raise RunnerError("the runner is closed")
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

    def _run(self, chunk: Chunk, tokens: npt.NDArray[np.int64]) -> FloatArray:
        total = self._lengths[chunk.slot] + tokens.size
        self._seqlens[0] = total - 1
        self._total[...] = total
        if tokens.size == 1:
            step = self._steps.get(chunk.slot) or self._steps.setdefault(chunk.slot, self._one_token(chunk.slot))
            step.tokens[0, 0] = tokens[0]
            self._session.run_with_iobinding(step.binding)
            logits = step.logits
        else:
            rows = np.arange(tokens.size) if chunk.logits == "all" else np.array([tokens.size - 1])
            logits = np.empty((1, rows.size, self._limits.vocab_size), np.float32)
            self._session.run_with_iobinding(self._bind(chunk.slot, tokens[None], rows, logits))
        self._lengths[chunk.slot] = total
        if chunk.logits == "none":
            return logits[0, :0]
        rows_wanted: FloatArray = logits[0]
        return rows_wanted

    def _one_token(self, slot: int) -> _Step:
        tokens, rows = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)
        logits = np.empty((1, 1, self._limits.vocab_size), np.float32)
        return _Step(tokens, rows, logits, self._bind(slot, tokens, rows, logits))

    def _bind(self, slot: int, tokens: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], logits: FloatArray) -> Any:
        # The caller keeps the arrays alive while the binding is in use.
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("input_ids", self._value(tokens))
        binding.bind_ortvalue_input("logits_index", self._value(rows.reshape(self._rows_shape)))
        for name, value in self._counts.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._names, self._bound[slot], strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(name.replace("key_values", "present"), value)
        binding.bind_ortvalue_output("logits", self._value(logits))
        return binding
