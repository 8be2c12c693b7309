"""Runs MLX weights with mlx-lm's models: on Apple silicon's GPU, or on a CPU for tests.

Each sequence slot has its own mlx-lm prompt cache, and slots run one after the other: a batch in mlx-lm shares one
cache, which would be copied whenever a sequence joins or leaves.

**Exact steps.** On the CPU, MLX computes every row independently: logits and KV cache are bit-identical however a
sequence is divided into chunks (measured: mlx 0.32.4 on x86-64; float, 4- and 8-bit weights, 8-bit cache). On Apple's
GPU, kernels are selected by the number of rows, so a single token may differ from the same token in a chunk in the last
bits: exactness is not guaranteed there, and `Chunk.exact` has no effect.

Everything is evaluated before a call returns. MLX streams belong to threads: an array left unevaluated by one thread
cannot be evaluated by another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ConfigError, RunnerError, broken_library, first_line, missing_extra
from edgekit.runners.base import Backend, Chunk, Limits
from edgekit.runners.slots import FloatArray, SlotRunner, TokenArray

__all__ = ["MlxRunner"]

_LOG = logging.getLogger(__name__)

# Group sizes of a quantized cache; the smaller one for heads that the larger does not divide.
_GROUPS = (64, 32)


class MlxRunner(SlotRunner):
    """A model that `mlx_lm.load` can open, loaded and ready.

    Args:
        folder: Contains `config.json` and `model*.safetensors`.
        context_length: Maximum tokens of one sequence slot.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one `run`.
        kv_bits: 8 quantizes keys and values to 8 bits, each group with a scale and an offset; None keeps their dtype.

    Raises:
        EdgekitError: mlx-lm is not installed (code `missing_extra`).
        ConfigError: The KV cache cannot be quantized to `kv_bits`.
        RunnerError: The weights cannot be loaded.
    """

    _backend, _runtime = "MLX", "mlx"

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        kv_bits: int | None = None,
    ) -> None:
        if min(context_length, sequence_slots, max_chunk) < 1:
            raise RunnerError("context length, sequence slots and chunk must be at least 1")
        if kv_bits not in {None, 8}:
            raise ConfigError(f"a {kv_bits}-bit KV cache is not supported", hint="use 8 bits, or leave it out")
        self._mx, load_model, self._layer_cache, self._quantized_cache = _import_mlx()
        mx = self._mx
        self._group: int | None = None
        try:
            self._model: Any = load_model(folder)[0]
            if mx.default_device() == mx.Device(mx.cpu):
                # MLX's CPU kernels for half precision are scalar and accumulate in half: slow and inaccurate.
                self._model.set_dtype(mx.float32)
                mx.eval(self._model.parameters())
            probe = self._new_cache()
            logits = self._logits(self._hidden(np.zeros(1, np.int64), probe))
            mx.eval(logits, *_arrays(probe))
        except Exception as error:
            raise RunnerError(f"cannot load the MLX weights in {folder}: {first_line(error)}") from error
        if kv_bits is not None:
            self._group = _group_of({array.shape[3] for array in _arrays(probe)})
            probe = self._new_cache()
            mx.eval(self._hidden(np.zeros(1, np.int64), probe), *_arrays(probe))
        # Shape of one token in each array of a slot: in MLA, for example, keys and values differ.
        self._rows = [(array.shape[1], array.shape[3], array.dtype) for array in _arrays(probe)]
        self._limits = Limits(
            context_length=context_length,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context_length),
            vocab_size=logits.shape[-1],
            kv_bytes_per_token=sum(heads * width * dtype.size for heads, width, dtype in self._rows),
        )
        self._slots: list[Any] = [self._new_cache() for _ in range(sequence_slots)]
        kv_type = "8 bits" if kv_bits else self._rows[0][2]
        _LOG.info("loaded %s on %s, KV cache in %s", folder, mx.default_device(), kv_type)

    @property
    def backend(self) -> Backend:
        """See `Runner.backend`."""
        return Backend(self._runtime, rounds_activations=self._group is not None)

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._closed = True
        self._slots = []
        self._model = None
        self._mx.clear_cache()

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        return [self._run(chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)]

    def _run(self, chunk: Chunk, tokens: TokenArray) -> FloatArray:
        mx = self._mx
        caches = self._slots[chunk.slot]
        hidden = self._hidden(tokens, caches)
        if chunk.logits == "none":
            mx.eval(*_arrays(caches))
            return np.empty((0, self._limits.vocab_size), dtype=np.float32)
        # Select rows before the head: over a full prompt it would cost more than the last layer.
        logits = self._logits(hidden if chunk.logits == "all" else hidden[:, -1:])
        logits = logits[0].astype(mx.float32)
        mx.eval(logits, *_arrays(caches))
        return np.array(logits)

    def _length(self, slot: int) -> int:
        return int(self._slots[slot][0].offset)

    def _truncate(self, slot: int, length: int) -> None:
        if length == 0:
            self._slots[slot] = self._new_cache()
            return
        for cache in self._slots[slot]:
            cache.trim(cache.offset - length)

    def _read(self, slot: int, start: int, stop: int) -> bytes:
        """Per layer keys, then values, `[heads, positions, width]`; if quantized, each as codes, scales and offsets."""
        if start == stop:
            return b""
        mx = self._mx
        # As bytes, because numpy has no bfloat16.
        spans = [mx.contiguous(array[..., start:stop, :]).view(mx.uint8) for array in _arrays(self._slots[slot])]
        mx.eval(spans)
        return b"".join(np.array(span, copy=False).data for span in spans)

    def _write(self, slot: int, count: int, data: memoryview) -> None:
        mx, caches, length, at = self._mx, self._slots[slot], self._length(slot), 0
        parts = []
        for heads, width, dtype in self._rows:
            size = heads * count * width * dtype.size
            part = np.frombuffer(data, np.uint8, size, at)
            parts.append(mx.array(part).view(dtype).reshape(1, heads, count, width))
            at += size
        each = len(parts) // len(caches) // 2
        for layer, cache in enumerate(caches):
            keys, values = (parts[(2 * layer + half) * each :][:each] for half in (0, 1))
            if self._group is None:
                cache.update_and_fetch(*keys, *values)
                continue
            # Grow the cache with zeros, then overwrite them with the quantized data. A word holds four codes.
            shapes = [(1, *codes.shape[1:3], 4 * codes.shape[3]) for codes in (keys[0], values[0])]
            cache.update_and_fetch(*(mx.zeros(shape, keys[1].dtype) for shape in shapes))
            for array, part in zip((*cache.keys, *cache.values), (*keys, *values), strict=True):
                array[..., length : length + count, :] = part
        mx.eval(*_arrays(caches))

    def _snapshot(self) -> None:
        """Return nothing: a failed step empties its slots."""

    def _restore(self, before: None, chunks: Sequence[Chunk]) -> None:  # noqa: ARG002
        # Their arrays may depend on the computation that failed.
        for chunk in chunks:
            self._truncate(chunk.slot, 0)

    def _new_cache(self) -> Any:
        """Create an empty cache that keeps every position.

        The model's default cache drops positions outside a sliding window and could not be truncated.
        """
        if self._group is not None:
            return [self._quantized_cache(group_size=self._group, bits=8) for _ in self._model.layers]
        return [self._layer_cache() for _ in self._model.layers]

    def _hidden(self, tokens: TokenArray, caches: Any) -> Any:
        """The final norm's output `[1, n, hidden]`."""
        return self._model.model(self._mx.array(tokens[None].astype(np.int32)), caches)

    def _logits(self, hidden: Any) -> Any:
        head = getattr(self._model, "lm_head", None)
        return head(hidden) if head is not None else self._model.model.embed_tokens.as_linear(hidden)


def _group_of(widths: set[int]) -> int:
    """The group size of a quantized cache with heads of these widths."""
    for group in _GROUPS:
        if not any(width % group for width in widths):
            return group
    raise ConfigError(
        f"an 8-bit KV cache needs heads of a multiple of {_GROUPS[-1]} elements; this model's have {min(widths)}",
        hint="leave the KV cache unquantized",
    )


def _arrays(caches: Any) -> list[Any]:
    """Keys and values of every layer, including unused capacity."""
    found: list[Any] = []
    for cache in caches:
        for part in (cache.keys, cache.values):
            found += part if isinstance(part, (list, tuple)) else [part]
    return found


def _import_mlx() -> tuple[Any, Any, Any, Any]:
    """Import MLX: its core, mlx-lm's `load_model` and the caches of one layer, float and quantized."""
    try:
        with _open_file_limit_kept():
            import mlx.core as mx
            from mlx_lm.models.cache import KVCache, QuantizedKVCache
            from mlx_lm.utils import load_model
    except ModuleNotFoundError as error:
        raise missing_extra("mlx_lm", "mlx") from error
    except ImportError as error:
        raise broken_library("mlx", error) from error
    return mx, load_model, KVCache, QuantizedKVCache


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    """Keep `import mlx_lm` from changing RLIMIT_NOFILE.

    The import also lowers the hard limit, which only root could undo, and raises ValueError if the hard limit is
    already lower. So the call itself is suppressed.
    """
    import resource

    original = resource.setrlimit

    def set_other_limits(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            original(which, limits)

    resource.setrlimit = set_other_limits
    try:
        yield
    finally:
        resource.setrlimit = original
