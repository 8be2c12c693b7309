"""Runs bundles of edgekit's ONNX dialects with the CPU kernels: several slots in one pass, without padding.

Weights are repacked into the layout of the kernels at load time, and the data file is closed. The KV cache is float16,
with keys in tiles of 16 positions, so that a query is multiplied by 16 keys at once. Every row is computed alike
whatever the rest of the batch is (batch-invariant), so `Chunk.exact` costs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import numpy.typing as npt

from edgekit.cores import usable_cores
from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk, Limits
from edgekit.runners.cpu.functions import Functions
from edgekit.runners.cpu.kv_cache import TiledKvCache
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.limits import check_limits
from edgekit.runners.cpu.model import ModelDescription
from edgekit.runners.cpu.parallel import run_parallel
from edgekit.runners.cpu.weights import Weights
from edgekit.runners.slots import FloatArray, SlotRunner, TokenArray

__all__ = ["CpuRunner"]

# The enums of csrc/model.h.
_QUERY, _KEY, _VALUE, _OUT, _GATE, _UP, _DOWN = range(7)
_INPUT_NORM, _BRANCH_NORM, _MLP_NORM, _MLP_OUT_NORM, _QUERY_NORM, _KEY_NORM = range(6)


class CpuRunner(SlotRunner):
    """A `Runner` over the CPU kernels.

    Args:
        description: The model; its arrays are not kept.
        kernels: From `library.load`.
        context_length: Tokens per slot; default: the model's context length.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step.
        threads: Default: one per usable core (`cores.py`).

    Raises:
        Unsupported: The kernels do not support the model's sizes.
        RunnerError: The context is longer than the model's, or memory cannot be allocated.
    """

    _backend, _runtime = "cpu kernels", "cpu"
    _rounds_activations = True

    def __init__(
        self,
        description: ModelDescription,
        kernels: Kernels,
        *,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        threads: int | None = None,
    ) -> None:
        model, longest = description, description.context_length
        context = longest if context_length is None else context_length
        if not 0 < context <= longest:
            raise RunnerError(
                f"the context length must be between 1 and {longest}, not {context}",
                hint=f"the model was exported for {longest} tokens",
            )
        self._variant, self._digest = kernels.variant, kernels.digest
        check_limits(model)
        self._call = Functions(kernels.library)
        self._resources = ExitStack()
        self._release = weakref.finalize(self, self._resources.close)
        # Not at interpreter exit: a thread may be in the middle of a step.
        self._release.atexit = False
        try:
            self._load(model, context, sequence_slots, threads or usable_cores())
        except BaseException as error:
            self._release()
            # From mmap, an array, a size beyond the address space, or a thread that cannot be started.
            if isinstance(error, OSError | MemoryError | OverflowError | RuntimeError):
                raise RunnerError(
                    f"not enough memory for the model with {sequence_slots} x {context} tokens",
                    hint="use fewer sequence slots or a shorter context",
                ) from error
            raise
        self._max_rows = max(max_chunk, sequence_slots) + 64
        self._limits = Limits(
            context_length=context,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context),
            vocab_size=model.vocab_size,
            kv_bytes_per_token=self._kv.bytes_per_token,
            exact=True,
        )

    @property
    def backend(self) -> Backend:
        """The variant of the kernels, and the digest of their library."""
        return Backend(self._runtime, self._variant, self._digest, self._rounds_activations)

    def close(self) -> None:
        """Release the model and the KV cache. Also happens when the runner is garbage-collected."""
        self._closed = True
        self._release()

    def _load(self, model: ModelDescription, context: int, slots: int, threads: int) -> None:
        """Allocate everything, and register with `_resources` how to free it."""
        call, resources = self._call, self._resources
        self._kv = TiledKvCache(
            len(model.layers), slots, heads=model.kv_heads, positions=context, head_dim=model.head_dim
        )
        resources.callback(self._kv.close)
        self._lengths = [0] * slots
        # One row per slot, as in decoding; reused from step to step.
        self._logits = np.empty((slots, model.vocab_size), np.float32)
        # Copies: a mapping would keep the file open, and truncating the file would kill the process.
        self._ropes = [
            tuple(np.array(table[:context], np.float32, order="C") for table in tables) for tables in model.ropes
        ]
        self._weights = Weights(call, self._variant, model.matrices())
        resources.callback(self._weights.close)
        self._model = call.model_new(
            self._variant.encode(),
            threads,
            model.vocab_size,
            model.hidden,
            model.intermediate,
            model.heads,
            model.kv_heads,
            model.head_dim,
            len(model.layers),
            self._kv.capacity,
            model.rms_norm_eps,
            model.activation == "gelu_tanh",
            1.0 if model.embedding_scale is None else model.embedding_scale,
        )
        if not self._model:
            raise MemoryError
        resources.callback(call.model_free, self._model)
        # The largest first, while little else is in memory.
        layers = [partial(self._layer, model, index) for index in range(len(model.layers))]
        run_parallel([partial(self._embeddings, model), *layers], threads)
        self._norm(-1, 0, model.final_norm)

    def _embeddings(self, model: ModelDescription) -> None:
        embedding = head = self._weights.matrix(model.embedding)
        if model.head is not model.embedding:
            head = self._weights.matrix(model.head)
        self._call.model_embeddings(self._model, embedding, head)
        model.release_pages()

    def _layer(self, model: ModelDescription, index: int) -> None:
        layer = model.layers[index]
        norms = {
            _INPUT_NORM: layer.input_norm,
            _BRANCH_NORM: layer.attention_out_norm,
            _MLP_NORM: layer.mlp_norm,
            _MLP_OUT_NORM: layer.mlp_out_norm,
            _QUERY_NORM: layer.q_norm,
            _KEY_NORM: layer.k_norm,
        }
        for which, norm in norms.items():
            if norm is not None:
                self._norm(index, which, norm)
        tables = self._ropes[layer.rope]
        cosines, sines = (table.ctypes.data for table in tables)
        keys, values = (array.ctypes.data for array in self._kv.of_layer(index))
        window = max(layer.window, 0)
        rotary_dim = 2 * tables[0].shape[1]
        self._call.model_layer(self._model, index, window, layer.scale, rotary_dim, cosines, sines, keys, values)
        matrices = {
            **dict(zip((_QUERY, _KEY, _VALUE), layer.qkv, strict=False)),
            _OUT: layer.o,
            **dict(zip((_GATE, _UP), layer.gate_up, strict=False)),
            _DOWN: layer.down,
        }
        for which, matrix in matrices.items():
            self._call.model_matrix(self._model, index, which, self._weights.matrix(matrix))
            # A matrix at a time, to bound the file's pages in memory: several threads load layers.
            model.release_pages()

    def _norm(self, index: int, which: int, weights: FloatArray) -> None:
        weights = np.ascontiguousarray(weights, np.float32)
        if self._call.model_norm(self._model, index, which, weights.size, weights.ctypes.data):
            raise MemoryError

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        results: list[FloatArray] = [self._logits[:0]] * len(chunks)
        low = 0
        while low < len(chunks):
            # At most `_max_rows` rows per pass, to bound the memory of activations.
            high, rows = low + 1, tokens[low].size
            while high < len(chunks) and rows + tokens[high].size <= self._max_rows:
                rows += tokens[high].size
                high += 1
            results[low:high] = self._pass(chunks[low:high], tokens[low:high], low)
            low = high
        return results

    def _pass(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray], before: int) -> list[FloatArray]:
        ids = np.concatenate(tokens).astype(np.int32)
        # The struct `chunk` of csrc/model.h.
        table = np.empty((len(chunks), 4), np.int32)
        wanted: list[npt.NDArray[np.int32]] = []
        row = 0
        for entry, chunk, part in zip(table, chunks, tokens, strict=True):
            entry[:] = chunk.slot, self._lengths[chunk.slot], row, part.size
            row += part.size
            first = {"none": row, "last": row - 1, "all": row - part.size}[chunk.logits]
            wanted.append(np.arange(first, row, dtype=np.int32))
        rows = np.concatenate(wanted)
        # Single rows go to a range that no other pass of this step overwrites.
        logits = self._logits[before : before + rows.size]
        if rows.size > len(chunks):
            logits = np.empty((rows.size, self._limits.vocab_size), np.float32)
        failed = self._call.step(
            self._model,
            ids.size,
            ids.ctypes.data,
            len(chunks),
            table.ctypes.data,
            rows.size,
            rows.ctypes.data,
            logits.ctypes.data,
        )
        if failed:
            raise MemoryError("not enough memory for a step of this size")
        for chunk, part in zip(chunks, tokens, strict=True):
            self._lengths[chunk.slot] += part.size
        ends = np.cumsum([part.size for part in wanted])
        return [logits[end - part.size : end] for part, end in zip(wanted, ends, strict=True)]

    def _length(self, slot: int) -> int:
        return self._lengths[slot]

    def _truncate(self, slot: int, length: int) -> None:
        self._lengths[slot] = length
        if length == 0:
            self._kv.release(slot)

    def _read(self, slot: int, start: int, stop: int) -> bytes:
        rows = np.empty((stop - start) * self._kv.bytes_per_token, np.uint8)
        self._call.read_kv(self._model, slot, start, stop - start, rows.ctypes.data)
        return rows.tobytes()

    def _write(self, slot: int, count: int, data: memoryview) -> None:
        rows = np.frombuffer(data, np.uint8)
        self._call.write_kv(self._model, slot, self._lengths[slot], count, rows.ctypes.data)
        self._lengths[slot] += count

    def _snapshot(self) -> list[int]:
        return list(self._lengths)

    def _restore(self, before: list[int], chunks: Sequence[Chunk]) -> None:  # noqa: ARG002
        self._lengths = before
