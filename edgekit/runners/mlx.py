"""Runs MLX weights with mlx-lm's models: on Apple silicon's GPU, or on a CPU for tests.

Each sequence slot has its own mlx-lm prompt cache. It knows no text, no sampling and no bundle beyond its folder.

Everything a call computes is evaluated before it returns. MLX streams belong to threads: an array left unevaluated by
one thread could not be evaluated by another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError, missing_extra
from edgekit.runners.base import Chunk, Limits, first_line

__all__ = ["MlxRunner"]

_LOG = logging.getLogger(__name__)


class MlxRunner:
    """A model that `mlx_lm.load` can open, loaded and ready.

    Args:
        folder: Holds `config.json` and `model*.safetensors`.
        context_length: Tokens one sequence slot may hold.
        sequence_slots: Sequences held at the same time.
        max_chunk: Most tokens of one slot in one `run`.

    Raises:
        EdgekitError: mlx-lm is not installed (code `missing_extra`).
        RunnerError: The weights cannot be loaded.
    """

    def __init__(self, folder: Path, *, context_length: int, sequence_slots: int = 1, max_chunk: int = 512) -> None:
        if min(context_length, sequence_slots, max_chunk) < 1:
            raise RunnerError("context length, sequence slots and chunk must be at least 1")
        self._mx, load_model, self._layer_cache = _import_mlx()
        mx = self._mx
        try:
            self._model: Any = load_model(folder)[0]
            if mx.default_device() == mx.Device(mx.cpu):
                # MLX's CPU kernels for half precision are scalar and accumulate in half: slow and inaccurate.
                self._model.set_dtype(mx.float32)
                mx.eval(self._model.parameters())
            probe = self._new_cache()
            logits = self._logits(self._hidden([0], probe))
            mx.eval(logits, *_arrays(probe))
        except Exception as error:
            raise RunnerError(f"cannot load the MLX weights in {folder}: {first_line(error)}") from error
        # One token's keys or values of one layer, `[heads, head_dim]`: MLA and the like differ between the two.
        self._rows = [(array.shape[1], array.shape[3]) for cache in probe for array in (cache.keys, cache.values)]
        self._kv_dtype = probe[0].keys.dtype
        elements = sum(heads * dim for heads, dim in self._rows)
        self._limits = Limits(
            context_length=context_length,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context_length),
            vocab_size=logits.shape[-1],
            kv_bytes_per_token=elements * self._kv_dtype.size,
        )
        self._slots: list[Any] = [self._new_cache() for _ in range(sequence_slots)]
        _LOG.info("loaded %s on %s in %s", folder, mx.default_device(), self._kv_dtype)

    @property
    def limits(self) -> Limits:
        """What this runner can do."""
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Append each chunk to its slot, one after the other.

        Returns:
            For each chunk float32 logits `[n, vocab]`, n being 0, 1 or the number of tokens.

        Raises:
            RunnerError: A chunk is malformed or would exceed the context length (no slot has changed), or MLX
                failed (the slots of this step are empty).
        """
        self._check(chunks)
        try:
            return [self._run_one(chunk) for chunk in chunks]
        except Exception as error:
            # Their arrays may wait for a computation that failed.
            for chunk in chunks:
                self.truncate(chunk.slot, 0)
            raise RunnerError(f"MLX failed: {first_line(error)}") from error

    def length(self, slot: int) -> int:
        """Tokens the slot holds."""
        return int(self._slot(slot)[0].offset)

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything from position `length` on; `truncate(slot, 0)` frees the slot's memory.

        Raises:
            RunnerError: The slot holds fewer tokens.
        """
        held = self.length(slot)
        if not 0 <= length <= held:
            raise RunnerError(f"sequence slot {slot} holds {held} tokens and cannot be truncated to {length}")
        if length == 0:
            self._slots[slot] = self._new_cache()
            return
        for cache in self._slots[slot]:
            cache.trim(held - length)

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        """The KV cache of positions `start:stop`: per layer keys, then values, each `[heads, positions, head_dim]`.

        Raises:
            RunnerError: The slot does not hold these positions.
        """
        held = self.length(slot)
        if not 0 <= start <= stop <= held:
            raise RunnerError(f"sequence slot {slot} holds {held} tokens, not positions {start} to {stop}")
        if start == stop:
            return b""
        mx = self._mx
        parts = []
        for array in _arrays(self._slots[slot]):
            # As bytes: numpy has no bfloat16.
            span = mx.contiguous(array[..., start:stop, :]).view(mx.uint8)
            parts.append(np.array(span).tobytes())
        return b"".join(parts)

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        """Put back what `read_kv` gave, at position `start` (the slot's length), and return the new length.

        Raises:
            RunnerError: The data does not fit this runner or this position.
        """
        held = self.length(slot)
        per_token = self._limits.kv_bytes_per_token
        count, rest = divmod(memoryview(data).nbytes, per_token)
        if rest:
            raise RunnerError(f"{len(data)} bytes of KV cache are not a multiple of {per_token} per token")
        if start != held:
            raise RunnerError(f"sequence slot {slot} holds {held} tokens; its KV cache cannot be written at {start}")
        self._check_room(slot, held, count)
        if count == 0:
            return held
        mx = self._mx
        arrays, at = [], 0
        for heads, dim in self._rows:
            size = heads * count * dim * self._kv_dtype.size
            part = np.frombuffer(data, dtype=np.uint8, count=size, offset=at)
            arrays.append(mx.array(part).view(self._kv_dtype).reshape(1, heads, count, dim))
            at += size
        for layer, cache in enumerate(self._slots[slot]):
            cache.update_and_fetch(arrays[2 * layer], arrays[2 * layer + 1])
        mx.eval(*_arrays(self._slots[slot]))
        return held + count

    def close(self) -> None:
        """Release the model; nothing can be run afterwards."""
        self._slots = []
        self._model = None
        self._mx.clear_cache()

    def _check(self, chunks: Sequence[Chunk]) -> None:
        """Refuse what cannot run before anything changes."""
        slots: set[int] = set()
        for chunk in chunks:
            if chunk.slot in slots:
                raise RunnerError(f"two chunks for sequence slot {chunk.slot} in one step")
            slots.add(chunk.slot)
            count = len(chunk.tokens)
            if not 1 <= count <= self._limits.max_chunk:
                raise RunnerError(f"a chunk holds 1 to {self._limits.max_chunk} tokens, not {count}")
            if not 0 <= min(chunk.tokens) <= max(chunk.tokens) < self._limits.vocab_size:
                raise RunnerError(f"a token is outside the vocabulary of {self._limits.vocab_size}")
            self._check_room(chunk.slot, self.length(chunk.slot), count)

    def _check_room(self, slot: int, held: int, more: int) -> None:
        if held + more > self._limits.context_length:
            raise RunnerError(
                f"sequence slot {slot} holds {held} tokens; {more} more exceed the context length of "
                f"{self._limits.context_length}",
                code="context_length_exceeded",
            )

    def _new_cache(self) -> Any:
        """An empty cache that keeps every position.

        The model's own would forget what has left a sliding window, and could then not be truncated.
        """
        return [self._layer_cache() for _ in self._model.layers]

    def _slot(self, slot: int) -> Any:
        if not 0 <= slot < len(self._slots):
            raise RunnerError(f"there is no sequence slot {slot}" if self._slots else "the runner is closed")
        return self._slots[slot]

    def _run_one(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        mx = self._mx
        caches = self._slots[chunk.slot]
        hidden = self._hidden(chunk.tokens, caches)
        if chunk.logits == "none":
            mx.eval(*_arrays(caches))
            return np.empty((0, self._limits.vocab_size), dtype=np.float32)
        # Before the head: its product over a whole prompt would cost more than the last layer.
        logits = self._logits(hidden if chunk.logits == "all" else hidden[:, -1:])
        logits = logits[0].astype(mx.float32)
        mx.eval(logits, *_arrays(caches))
        return np.array(logits)

    def _hidden(self, tokens: Sequence[int], caches: Any) -> Any:
        """The final norm's output `[1, n, hidden]`."""
        return self._model.model(self._mx.array([list(tokens)]), caches)

    def _logits(self, hidden: Any) -> Any:
        head = getattr(self._model, "lm_head", None)
        return head(hidden) if head is not None else self._model.model.embed_tokens.as_linear(hidden)


def _arrays(caches: Any) -> list[Any]:
    """Keys and values of every layer, as they lie in memory."""
    return [array for cache in caches for array in (cache.keys, cache.values)]


def _import_mlx() -> tuple[Any, Any, Any]:
    """Import MLX: its core, mlx-lm's `load_model` and the cache of one layer."""
    try:
        with _open_file_limit_kept():
            import mlx.core as mx
            from mlx_lm.models.cache import KVCache
            from mlx_lm.utils import load_model
    except ImportError as error:
        raise missing_extra("mlx_lm", "mlx") from error
    return mx, load_model, KVCache


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    """Keep `import mlx_lm` from changing RLIMIT_NOFILE.

    It lowers the hard limit too, which only root could undo, and raises ValueError where the hard limit is
    already lower; so the call itself is kept from taking effect.
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
