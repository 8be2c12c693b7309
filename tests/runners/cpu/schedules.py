"""Random schedules of steps over several sequence slots, whose results must equal those of one long chunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from edgekit.runners.base import Chunk
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription
from edgekit.runners.cpu.runner import CpuRunner
from tests.runners.cpu.models import Shape, random_model

__all__ = ["GARBAGE", "MODELS", "SCHEDULES", "SLOTS", "Slots", "expected_of", "follow", "model_of"]

FloatArray = npt.NDArray[np.float32]

SLOTS, LENGTH, SEQUENCES = 3, 600, 4
# Together they cover all kinds of grids, fused and separate matrices, partial rotation, windows across spans, one or
# several query heads per KV head, and more query heads per KV head than one attention item takes.
MODELS = {
    "plain": Shape(positions=LENGTH, vocab_size=50, window=270),
    "full": Shape(
        positions=LENGTH,
        vocab_size=33,
        hidden=48,
        heads=9,
        kv_heads=1,
        head_dim=32,
        bits=8,
        offsets="float",
        fused=False,
        biases=True,
        head_norms=True,
        post_norms=True,
        activation="gelu_tanh",
        window=20,
    ),
    "columns": Shape(
        positions=LENGTH,
        heads=3,
        kv_heads=3,
        head_dim=48,
        offsets="symmetric",
        group_size=16,
        fused=False,
        by_columns=True,
        rotary_dim=32,
    ),
}
# NaN, minus infinity, and the maximum of float16.
GARBAGE = (0x7E00, 0xFC00, 0x7BFF)


@cache
def model_of(name: str) -> ModelDescription:
    return random_model(MODELS[name])


@dataclass(frozen=True)
class Expected:
    """Results of a full sequence, run in one chunk, alone, by one thread."""

    tokens: list[int]
    logits: FloatArray
    cache: npt.NDArray[np.uint16]

    def kv(self, start: int, stop: int) -> bytes:
        return np.ascontiguousarray(self.cache[:, start:stop]).tobytes()


@cache
def expected_of(name: str, kernels: Kernels) -> list[Expected]:
    model, expected = model_of(name), []
    runner = CpuRunner(model, kernels, threads=1, max_chunk=LENGTH)
    for seed in range(SEQUENCES):
        tokens = np.random.default_rng(seed).integers(0, model.vocab_size, LENGTH).tolist()
        logits = runner.run([Chunk(0, tokens, "all")])[0].copy()
        rows = np.frombuffer(runner.read_kv(0, 0, LENGTH), np.uint16).reshape(-1, LENGTH, model.head_dim)
        expected.append(Expected(tokens, logits, rows))
        runner.truncate(0, 0)
    runner.close()
    return expected


class Slots:
    """A runner whose results are all compared with the expected ones."""

    def __init__(self, name: str, kernels: Kernels, threads: int) -> None:
        self.runner = CpuRunner(model_of(name), kernels, threads=threads, sequence_slots=SLOTS, max_chunk=LENGTH)
        self._expected = expected_of(name, kernels)
        self._sequence = [0] * SLOTS

    def length(self, slot: int) -> int:
        return self.runner.length(slot)

    def restart(self, slot: int, sequence: int) -> None:
        self.runner.truncate(slot, 0)
        self._sequence[slot] = sequence

    def run(self, parts: list[tuple[int, int, Literal["none", "last", "all"]]]) -> None:
        """Append tokens to slots: (slot, count, logits) each."""
        chunks = []
        for slot, count, logits in parts:
            start = self.length(slot)
            tokens = self._expected[self._sequence[slot]].tokens[start : start + count]
            if tokens:
                chunks.append(Chunk(slot, tokens, logits))
        for chunk, got in zip(chunks, self.runner.run(chunks), strict=True):
            end = self.length(chunk.slot)
            first = {"all": end - len(chunk.tokens), "last": end - 1, "none": end}[chunk.logits]
            np.testing.assert_array_equal(got, self._expected[self._sequence[chunk.slot]].logits[first:end])

    def copy(self, source: int, slot: int, at: int) -> None:
        """Replace a slot by a copy of another, written in two parts."""
        self.restart(slot, self._sequence[source])
        length = self.length(source)
        for start, stop in ((0, min(at, length)), (min(at, length), length)):
            assert self.runner.write_kv(slot, start, self.runner.read_kv(source, start, stop)) == stop

    def spoil(self, slot: int, count: int, number: int) -> None:
        """Write garbage after the end of a slot, and truncate it again."""
        length = self.length(slot)
        count = min(count, LENGTH - length)
        garbage = np.full(count * self.runner.limits.kv_bytes_per_token // 2, number, np.uint16)
        self.runner.write_kv(slot, length, garbage.tobytes())
        self.runner.truncate(slot, length)

    def check_cache(self) -> None:
        for slot, sequence in enumerate(self._sequence):
            length = self.length(slot)
            start = length // 3
            assert self.runner.read_kv(slot, start, length) == self._expected[sequence].kv(start, length)


_slot = st.integers(0, SLOTS - 1)
_count = st.one_of(st.just(1), st.integers(1, 40), st.integers(1, LENGTH))
_part = st.tuples(_slot, _count, st.sampled_from(["none", "last", "all"]))
_step = st.one_of(
    st.tuples(st.just("run"), st.lists(_part, min_size=1, max_size=SLOTS, unique_by=lambda part: part[0])),
    st.tuples(st.just("decode"), st.permutations(range(SLOTS)), st.integers(1, 6)),
    st.tuples(st.just("truncate"), _slot, st.floats(0, 1)),
    st.tuples(st.just("restart"), _slot, st.integers(0, SEQUENCES - 1)),
    st.tuples(st.just("copy"), st.permutations(range(SLOTS)), st.integers(0, LENGTH)),
    st.tuples(st.just("spoil"), _slot, st.integers(1, 300), st.sampled_from(GARBAGE)),
)
SCHEDULES = st.lists(_step, min_size=8, max_size=14)


def follow(slots: Slots, schedule: list[tuple[Any, ...]]) -> None:
    """Execute a schedule."""
    for kind, *what in schedule:
        match kind, *what:
            case "run", parts:
                slots.run(parts)
            case "decode", order, steps:
                for _ in range(steps):
                    slots.run([(slot, 1, "last") for slot in order])
            case "truncate", slot, part:
                slots.runner.truncate(slot, int(part * slots.length(slot)))
            case "restart", slot, sequence:
                slots.restart(slot, sequence)
            case "copy", (source, slot, _), at:
                slots.copy(source, slot, at)
            case "spoil", slot, count, number:
                slots.spoil(slot, count, number)
    slots.check_cache()
