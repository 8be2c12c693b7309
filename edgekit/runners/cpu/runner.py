"""Runs bundles of the `onnxruntime` dialect with kernels of our own: several slots in one pass, nothing padded.

Weights are put into the kernels' form when the model is loaded, and the file is let go of. Keys and values are kept as
float16; keys lie in tiles of 16 positions, so that a query is multiplied by 16 of them at once. Every row is computed
alike whatever is beside it, so that `Chunk.exact` costs nothing. It knows no graph: `description.py` reads that.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk, Limits
from edgekit.runners.cores import usable_cores
from edgekit.runners.cpu.functions import Functions
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.model import LayerDescription, Matrix, ModelDescription
from edgekit.runners.cpu.sizes import check_sizes
from edgekit.runners.cpu.tiles import TiledKvCache
from edgekit.runners.cpu.weights import Weights
from edgekit.runners.slots import FloatArray, SlotRunner, TokenArray

__all__ = ["CpuRunner"]

# Of csrc/model.c.
_QUERY, _KEY, _VALUE, _OUT, _GATE, _UP, _DOWN = range(7)
_INPUT_NORM, _BRANCH_NORM, _MLP_NORM, _MLP_OUT_NORM, _QUERY_NORM, _KEY_NORM = range(6)


class CpuRunner(SlotRunner):
    """A `Runner` over the kernels.

    Args:
        description: Of the model; its arrays are not kept.
        kernels: From `library.load`.
        context_length: Tokens per slot; None takes the model's own.
        sequence_slots: How many sequences may live at the same time.
        max_chunk: Most tokens of one slot in one step.
        threads: None takes one per physical core.

    Raises:
        Unsupported: The kernels cannot compute with such sizes.
        RunnerError: The context is longer than the model's, or there is no memory.
    """

    _backend, _runtime = "cpu kernels", "cpu"

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
        check_sizes(model)
        self._call = Functions(kernels.library)
        self._resources = ExitStack()
        self._release = weakref.finalize(self, self._resources.close)
        # Not at exit: a thread may be in the middle of a step.
        self._release.atexit = False
        try:
            self._load(model, context, sequence_slots, threads or usable_cores())
        except BaseException as error:
            self._release()
            # From a mapping, an array, a size that no address has, a thread that cannot be started.
            if isinstance(error, OSError | MemoryError | OverflowError | RuntimeError):
                raise RunnerError(
                    f"there is no memory for the model with {sequence_slots} x {context} tokens",
                    hint="serve fewer sequence slots, or a shorter context",
                ) from error
            raise
        self._most_rows = max(max_chunk, sequence_slots) + 64
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
        """What computes: these kernels, of this library."""
        return Backend(self._runtime, self._variant, self._digest)

    def close(self) -> None:
        """Release the model and the KV cache; done anyway when the runner is dropped."""
        self._closed = True
        self._release()

    def _load(self, model: ModelDescription, context: int, slots: int, threads: int) -> None:
        """Make everything there is, and tell `_resources` how to let go of it."""
        call, held = self._call, self._resources
        self._kv = TiledKvCache(
            len(model.layers), slots, heads=model.kv_heads, positions=context, head_dim=model.head_dim
        )
        held.callback(self._kv.close)
        self._lengths = [0] * slots
        # Of a row each that is asked for most; reused from step to step.
        self._logits = np.empty((slots, model.vocab_size), np.float32)
        # Copies: what is mapped would keep the file open, and the process at the mercy of who writes to it.
        self._ropes = [tuple(np.array(table[:context], order="C") for table in tables) for tables in model.ropes]
        self._weights = Weights(call, self._variant, model.matrices())
        held.callback(self._weights.close)
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
        held.callback(call.model_free, self._model)
        with ThreadPoolExecutor(threads) as pool:
            self._fill(model, pool)

    def _fill(self, model: ModelDescription, pool: ThreadPoolExecutor) -> None:
        """Give the kernels all numbers; a layer at a time, so that the file's pages come and go."""
        call = self._call

        def table(matrix: Matrix) -> int:
            made = self._weights.matrix(matrix)
            model.let_go()
            return made

        def filled(index: int) -> dict[int, int]:
            made = self._layer(index, model.layers[index])
            model.let_go()
            return made

        # The largest first, while there is little else in memory.
        embedding = pool.submit(table, model.embedding)
        head = embedding if model.head is model.embedding else pool.submit(table, model.head)
        layers = [pool.submit(filled, index) for index in range(len(model.layers))]
        for index, done in enumerate(layers):
            for which, matrix in done.result().items():
                call.model_matrix(self._model, index, which, matrix)
        call.model_tables(self._model, embedding.result(), head.result())
        self._norm(-1, 0, model.final_norm)

    def _layer(self, index: int, layer: LayerDescription) -> dict[int, int]:
        matrices = {
            **dict(zip((_QUERY, _KEY, _VALUE), layer.qkv, strict=False)),
            _OUT: layer.o,
            **dict(zip((_GATE, _UP), layer.gate_up, strict=False)),
            _DOWN: layer.down,
        }
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
        cosines, sines = (table.ctypes.data for table in self._ropes[layer.rope])
        keys, values = (array.ctypes.data for array in self._kv.of_layer(index))
        window = max(layer.window, 0)
        self._call.model_layer(self._model, index, window, layer.scale, cosines, sines, keys, values)
        return {which: self._weights.matrix(matrix) for which, matrix in matrices.items()}

    def _norm(self, index: int, which: int, weights: FloatArray) -> None:
        weights = np.ascontiguousarray(weights, np.float32)
        if self._call.model_norm(self._model, index, which, weights.size, weights.ctypes.data):
            raise MemoryError

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        results: list[FloatArray] = [self._logits[:0]] * len(chunks)
        low = 0
        while low < len(chunks):
            # A pass of so many rows at most, so that its activations have a bound.
            high, rows = low + 1, tokens[low].size
            while high < len(chunks) and rows + tokens[high].size <= self._most_rows:
                rows += tokens[high].size
                high += 1
            results[low:high] = self._pass(chunks[low:high], tokens[low:high], low)
            low = high
        return results

    def _pass(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray], before: int) -> list[FloatArray]:
        ids = np.concatenate(tokens).astype(np.int32)
        places = np.empty((len(chunks), 4), np.int32)
        wanted: list[npt.NDArray[np.int32]] = []
        row = 0
        for place, chunk, part in zip(places, chunks, tokens, strict=True):
            place[:] = chunk.slot, self._lengths[chunk.slot], row, part.size
            row += part.size
            first = {"none": row, "last": row - 1, "all": row - part.size}[chunk.logits]
            wanted.append(np.arange(first, row, dtype=np.int32))
        rows = np.concatenate(wanted)
        # Single rows have places that no other pass of this step overwrites.
        logits = self._logits[before : before + rows.size]
        if rows.size > len(chunks):
            logits = np.empty((rows.size, self._limits.vocab_size), np.float32)
        failed = self._call.step(
            self._model,
            ids.size,
            ids.ctypes.data,
            len(chunks),
            places.ctypes.data,
            rows.size,
            rows.ctypes.data,
            logits.ctypes.data,
        )
        if failed:
            raise MemoryError("there is no memory for a step of this size")
        for chunk, part in zip(chunks, tokens, strict=True):
            self._lengths[chunk.slot] += part.size
        ends = np.cumsum([part.size for part in wanted])
        return [logits[end - part.size : end] for part, end in zip(wanted, ends, strict=True)]

    def _held(self, slot: int) -> int:
        return self._lengths[slot]

    def _cut(self, slot: int, length: int) -> None:
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
