"""Logits and KV cache are bit-identical whatever the chunks, the rest of the batch and the number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runners.base import Chunk
from edgekit.runners.cpu.library import Kernels
from edgekit.runners.cpu.runner import CpuRunner
from tests.runners.cpu.schedules import GARBAGE, MODELS, SCHEDULES, SLOTS, Slots, expected_of, follow, model_of


@pytest.mark.parametrize("name", MODELS)
@given(schedule=SCHEDULES, threads=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_any_schedule_gives_the_bits_of_one_long_chunk(
    name: str, kernels: Kernels, schedule: list[tuple[Any, ...]], threads: int
) -> None:
    slots = Slots(name, kernels, threads)
    follow(slots, schedule)
    slots.runner.close()


@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_gives_the_bits_of_one_long_chunk(name: str, kernels: Kernels) -> None:
    for threads in (1, 2):
        slots = Slots(name, kernels, threads)
        slots.restart(1, 1)
        slots.run([(0, 240, "none"), (1, 500, "none")])
        slots.spoil(0, 100, GARBAGE[0])
        for _ in range(30):
            slots.run([(0, 1, "last")])
            slots.run([(1, 1, "last"), (0, 1, "all")])
        slots.check_cache()
        slots.runner.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(threads: int, kernels: Kernels) -> None:
    for name in MODELS:
        slots = Slots(name, kernels, threads)
        for slot in range(SLOTS):
            slots.restart(slot, slot)
        slots.run([(2, 300, "all"), (0, 257, "all"), (1, 16, "all")])
        for _ in range(3):
            slots.run([(1, 1, "last"), (2, 1, "last"), (0, 1, "last")])
        slots.run([(0, 17, "all"), (2, 40, "last")])
        slots.check_cache()
        slots.runner.close()


def test_leftovers_in_a_slot_never_affect_results(kernels: Kernels) -> None:
    for name, number in zip(MODELS, GARBAGE, strict=True):
        slots = Slots(name, kernels, 2)
        # At the edges of tiles and spans, where unused positions are next to used ones.
        for length in (0, 1, 15, 16, 17, 255, 256, 257, 300):
            slots.run([(0, length - slots.length(0), "none")] if length else [])
            slots.spoil(0, 300, number)
            slots.spoil(1, 300, number)
            slots.run([(0, 2, "all")])
            slots.runner.truncate(0, length)
            slots.run([(0, 1, "last"), (2, 1, "last")])
            slots.run([(0, 1, "last")])
            slots.runner.truncate(0, length)
        slots.check_cache()
        slots.runner.close()


def test_more_rows_than_one_pass_takes_give_the_same_bits(best: Kernels) -> None:
    model = model_of("plain")
    expected = expected_of("plain", best)
    runner = CpuRunner(model, best, threads=2, sequence_slots=40, max_chunk=50)
    done = 0
    for count in (50, 49, 1, 13):
        chunks = [
            Chunk(slot, expected[slot % 4].tokens[done : done + count], ("all", "last", "none")[slot % 3])
            for slot in range(40)
        ]
        done += count
        # All logits of a step are valid at the same time.
        for slot, got in enumerate(runner.run(chunks)):
            first = {0: done - count, 1: done - 1, 2: done}[slot % 3]
            np.testing.assert_array_equal(got, expected[slot % 4].logits[first:done])
    assert all(runner.read_kv(slot, 0, done) == expected[slot % 4].kv(0, done) for slot in range(40))
