"""Runs the engines of a Jetson's or an RTX card's bundle: `tensorrt` and `tensorrt_rtx`, `portable` and `native`.

Prefill runs in chunks, one sequence at a time. Decode runs as many sequences in one execution as the engines allow, if
their caches have the same length bucket. Its first execution at a place in the KV cache is a plain one, and is captured
as a CUDA graph: all engines, and the kernel that puts the new rows behind the old ones. Later steps write tokens,
positions and masks, and launch the graph. `Chunk.exact` is not supported.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgekit.errors import RunnerError, first_line
from edgekit.runners.base import Backend, Chunk, Limits
from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.kernels import KvScatter
from edgekit.runners.cuda.memory import DeviceMemory
from edgekit.runners.cuda.stream import Stream
from edgekit.runners.masks import Masks
from edgekit.runners.slots import FloatArray, SlotRunner, TokenArray
from edgekit.runners.tensorrt.buffers import StepBuffers
from edgekit.runners.tensorrt.graphs import DecodeStep, DecodeSteps, StepKey
from edgekit.runners.tensorrt.kv_arena import KvArena
from edgekit.runners.tensorrt.memory import EngineMemory, Share, slot_positions
from edgekit.runners.tensorrt.placement import Place
from edgekit.runners.tensorrt.runtime_cache import RuntimeCache
from edgekit.runners.tensorrt.session import Session, scratch_bytes
from edgekit.runners.tensorrt.tensors import BATCH, CHUNK, DECODE, describe_engines, present_of

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt

__all__ = ["TensorRtRunner"]

logger = logging.getLogger(__name__)

# Steps in which the same slots decode apart before they are moved side by side: a move copies their caches.
_STEADY_STEPS = 3


class _Closable(Protocol):
    def close(self) -> None: ...


_Part = TypeVar("_Part", bound=_Closable)


class TensorRtRunner(SlotRunner):
    """A `Runner` over engines that are open.

    Args:
        library: The module that opened them: `tensorrt` or `tensorrt_rtx`.
        engines: In the order in which they run: one, or segments of layers. The runner releases them when it closes.
        device: The GPU; the caller closes it, after the runner.
        window: Size of the sliding window, if the graph has a `window_mask`: its metadata `edgekit.window`.
        context_length: Tokens per slot; default: what the engines were built for.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step; the engines may allow fewer.
        errors: Returns what the library has logged since the last call.
        backend: What computes: the library's version, and a digest of the engines.
        runtime_cache: File for what TensorRT for RTX compiles on this GPU when the engines first run.
        share: Returns the positions of the KV cache that all slots share; default: enough for all of them to be full.

    Raises:
        RunnerError: The engines do not fit, or there is not enough memory.
    """

    _backend, _runtime = "TensorRT", "tensorrt"

    def __init__(
        self,
        library: ModuleType,
        engines: Sequence[trt.ICudaEngine],
        device: Device,
        *,
        window: int | None = None,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        errors: Callable[[], Sequence[str]] = tuple,
        backend: Backend | None = None,
        runtime_cache: Path | None = None,
        share: Share | None = None,
    ) -> None:
        device.activate()
        self._computes = backend or Backend(self._runtime)
        self._device = device
        self._tensors = tensors = describe_engines(library, engines)
        if context_length is not None and not 0 < context_length <= tensors.capacity:
            raise RunnerError(
                f"the context length must be between 1 and {tensors.capacity}, not {context_length}",
                hint=f"the engine was built for {tensors.capacity} tokens",
            )
        if "window_mask" in tensors.masks and window is None:
            raise RunnerError("the size of the sliding window is not known", hint="export the model again")
        masks = Masks(
            "attention_mask" in tensors.masks, window if "window_mask" in tensors.masks else None, tensors.dtype
        )
        chunk = min(max_chunk, tensors.max_chunk, context_length or tensors.capacity)
        batch = min(sequence_slots, tensors.max_batch)
        capacity, scratch_size = slot_positions(tensors, context_length), scratch_bytes(engines)
        memory = EngineMemory.of(
            tensors, scratch_size, capacity=capacity, slots=sequence_slots, batch=batch, chunk=chunk
        )
        self._engines: list[trt.ICudaEngine] = list(engines)
        self._opened: list[_Closable] = []
        try:
            self._stream = self._keep(Stream(device))
            handle = int(self._stream.handle)
            # The KV cache first: it is the largest.
            self._kv = self._keep(
                KvArena(
                    device,
                    self._stream,
                    tensors=len(tensors.caches),
                    slots=sequence_slots,
                    heads=tensors.heads,
                    row_bytes=tensors.row_bytes,
                    capacity=capacity,
                    block=None if tensors.in_place else tensors.block,
                    positions=None if share is None else share(memory),
                )
            )
            pool = self._kv.pool
            sequence_slots = min(sequence_slots, pool.positions // pool.taken(1))
            self._buffers = self._keep(
                StepBuffers(
                    device,
                    self._stream,
                    tensors,
                    masks,
                    caches=[self._kv.base(index) for index in range(len(tensors.caches))],
                    capacity=pool.capacity,
                    batch=batch,
                    chunk=chunk,
                )
            )
            self._scatter = None if tensors.in_place else self._keep(KvScatter(device))
            scratch = self._keep(DeviceMemory(device, scratch_size))

            self._cache = cache = RuntimeCache(runtime_cache)

            def session(profile: int) -> Session:
                return Session(library, self._engines, profile, handle, scratch=scratch, cache=cache, errors=errors)

            self._new_session = session
            self._chunks = self._keep(session(CHUNK))
            self._decoding = self._keep(DecodeSteps())
            self._stream.synchronize()
        except BaseException:
            self._release()
            raise
        self._captures = True
        self._batch = batch
        self._previous: tuple[int, ...] = ()
        self._scattered = 0
        self._limits = Limits(
            context_length=min(context_length or pool.capacity, pool.capacity),
            sequence_slots=sequence_slots,
            max_chunk=chunk,
            vocab_size=tensors.vocab_size,
            kv_bytes_per_token=self._kv.bytes_per_token,
            kv_pool=pool,
        )
        logger.info(
            "engines in %d segments on %s: %.0f MiB for a KV cache of %d tokens, %.0f for inputs and outputs, %.0f to "
            "compute in",
            len(engines),
            device.name,
            self._kv.size / (1 << 20),
            pool.positions,
            *(part.size / (1 << 20) for part in (self._buffers, scratch)),
        )

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self._computes

    def close(self) -> None:
        """Release the engines, the KV cache and all other memory."""
        if not self._closed:
            self._closed = True
            self._device.activate()
            self._cache.save()
            self._release()

    def _step(self, chunks: Sequence[Chunk], tokens: Sequence[TokenArray]) -> list[FloatArray]:
        self._device.activate()
        by_slot = {chunk.slot: (chunk, ids) for chunk, ids in zip(chunks, tokens, strict=True)}
        self._kv.reserve({slot: self._kv.lengths[slot] + ids.size for slot, (_, ids) in by_slot.items()})
        single = [slot for slot, (_, ids) in by_slot.items() if ids.size == 1]
        logits: dict[int, FloatArray] = {}
        for run in self._runs(single):
            logits |= self._decode(run, [by_slot[slot][1] for slot in run])
        for slot, (chunk, ids) in by_slot.items():
            if ids.size > 1:
                logits[slot] = self._run_chunk(slot, ids, every_row=chunk.logits == "all")
            self._kv.lengths[slot] += ids.size
        return [logits[chunk.slot][: 0 if chunk.logits == "none" else None] for chunk in chunks]

    def _runs(self, slots: list[int]) -> list[list[int]]:
        """Divide slots with one token each into executions.

        Slots that decode together for some steps are moved side by side, if that saves an execution.
        """
        runs, wanted = self._kv.runs(slots, self._batch), tuple(sorted(slots))
        if len(runs) <= self._kv.fewest_runs(slots, self._batch):
            self._scattered = 0
            return runs
        self._scattered = self._scattered + 1 if wanted == self._previous else 1
        self._previous = wanted
        if self._scattered <= _STEADY_STEPS:
            return runs
        self._kv.gather(slots)
        return self._kv.runs(slots, self._batch)

    def _decode(self, slots: list[int], tokens: list[TokenArray]) -> dict[int, FloatArray]:
        """Run one token of each of some slots, which lie side by side."""
        place, batch = self._kv.place(slots[0]), len(slots)
        buffers, lengths = self._buffers, [self._kv.lengths[slot] for slot in slots]
        shapes = buffers.fill(tokens, lengths, place.stride, every_row=False)
        step = self._decode_step(place, batch, shapes)

        def enqueue() -> None:
            buffers.upload(shapes)
            step.session.enqueue()
            self._append(place, batch, 1)
            buffers.download(batch, 1, decoding=True)

        if step.graph is not None:
            step.graph.launch(self._stream)
        else:
            enqueue()
            self._capture(step, enqueue)
            self._stream.synchronize()
            self._cache.save()
        self._stream.synchronize()
        logits = buffers.logits(batch, 1, decoding=True)
        return {slot: logits[index] for index, slot in enumerate(slots)}

    def _decode_step(self, place: Place, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> DecodeStep:
        key = StepKey(place.offset, place.stride, batch)
        step = self._decoding.get(key)
        if step is None:
            step = DecodeStep(self._new_session(BATCH if batch > 1 else DECODE))
            self._prepare(step.session, place, shapes, self._buffers.logits_address(batch, 1, decoding=True))
            self._decoding.add(key, step)
        return step

    def _capture(self, step: DecodeStep, enqueue: Callable[[], None]) -> None:
        """Capture a step that was just run plainly with the same shapes, as TensorRT requires."""
        if not self._captures or not step.session.can_be_captured():
            return
        try:
            step.graph = self._stream.capture(enqueue)
        except RunnerError as error:
            self._captures = False
            logger.warning("decoding without CUDA graphs, more slowly: %s", first_line(error))

    def _run_chunk(self, slot: int, tokens: TokenArray, *, every_row: bool) -> FloatArray:
        """Run a chunk of one sequence."""
        place, rows = self._kv.place(slot), tokens.size if every_row else 1
        buffers = self._buffers
        shapes = buffers.fill([tokens], [self._kv.lengths[slot]], place.stride, every_row=every_row)
        self._prepare(self._chunks, place, shapes, buffers.logits_address(1, rows, decoding=False))
        buffers.upload(shapes)
        self._chunks.enqueue()
        self._append(place, 1, tokens.size)
        buffers.download(1, rows, decoding=False)
        self._stream.synchronize()
        logits: FloatArray = buffers.logits(1, rows, decoding=False)[0]
        return logits

    def _prepare(
        self, session: Session, place: Place, shapes: Mapping[str, tuple[int, ...]], logits_address: int
    ) -> None:
        """Set the shapes and addresses of an execution on caches at a place."""
        tensors, offset = self._tensors, self._kv.offset_bytes(place)
        caches = {name: self._kv.base(index) + offset for index, name in enumerate(tensors.caches)}
        addresses = {**self._buffers.addresses, **caches, "logits": logits_address}
        if tensors.in_place:
            addresses |= {present_of(name): address for name, address in caches.items()}
        session.bind(addresses)
        batch, _ = shapes["input_ids"]
        shape = (batch, tensors.heads, *tensors.positions(place.stride), tensors.head_dim)
        session.reshape({**shapes, **dict.fromkeys(tensors.caches, shape)})

    def _append(self, place: Place, batch: int, rows: int) -> None:
        """Enqueue the kernel that puts new rows behind the old ones, if the engines do not write them there."""
        if self._scatter is not None:
            self._scatter.enqueue(
                self._stream,
                sources=self._buffers.sources,
                caches=self._buffers.caches,
                starts=self._buffers.starts,
                tensors=len(self._tensors.caches),
                batch=batch,
                heads=self._tensors.heads,
                rows=rows,
                row_bytes=self._tensors.row_bytes,
                stride=place.stride,
                offset=self._kv.offset_bytes(place),
            )

    def _length(self, slot: int) -> int:
        return self._kv.lengths[slot]

    def _truncate(self, slot: int, length: int) -> None:
        if length == 0:
            self._kv.release(slot)
        else:
            self._kv.lengths[slot] = length

    def _read(self, slot: int, start: int, stop: int) -> bytes:
        self._device.activate()
        return self._kv.read(slot, start, stop)

    def _write(self, slot: int, count: int, data: memoryview) -> None:  # noqa: ARG002 - given by the size of `data`
        self._device.activate()
        self._kv.write(slot, data)

    def _snapshot(self) -> list[int]:
        return list(self._kv.lengths)

    def _restore(self, before: list[int], chunks: Sequence[Chunk]) -> None:  # noqa: ARG002
        self._kv.lengths[:] = before
        # What was enqueued before the failure still reads the inputs, which the next step writes.
        with contextlib.suppress(RunnerError):
            self._stream.synchronize()

    def _keep(self, part: _Part) -> _Part:
        self._opened.append(part)
        return part

    def _release(self) -> None:
        """Close everything, in the reverse order of opening."""
        while self._opened:
            _close(self._opened.pop())
        self._engines.clear()


def _close(part: _Closable) -> None:
    try:
        part.close()
    except RunnerError as error:  # after a fault of the GPU, nothing can be freed
        logger.warning("%s", first_line(error))
