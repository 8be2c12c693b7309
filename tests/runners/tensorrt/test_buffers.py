from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.stream import Stream
from edgekit.runners.masks import Masks
from edgekit.runners.tensorrt.buffers import StepBuffers
from edgekit.runners.tensorrt.tensors import EngineTensors
from tests.runners.cuda.driver_double import DriverDouble

FAR = -65504


def buffers(*, in_place: bool, window: int | None = None) -> StepBuffers:
    device = Device(DriverDouble())
    dtype = np.dtype(np.float16)
    masks = ("attention_mask",) if window is None else ("attention_mask", "window_mask")
    tensors = EngineTensors(
        caches=("past_key_values.0.key", "past_key_values.0.value"),
        heads=2,
        head_dim=16,
        dtype=dtype,
        in_place=in_place,
        block=1 if in_place else 8,
        capacity=16,
        masks=masks,
        max_batch=2,
        max_chunk=4,
        vocab_size=32,
        boundaries={"residual": 64},
    )
    return StepBuffers(
        device,
        Stream(device),
        tensors,
        Masks(full=True, window=window, dtype=dtype),
        caches=[256, 512],
        capacity=16,
        batch=2,
        chunk=4,
    )


def filled(step: StepBuffers, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: step._view(name, shape).tolist() for name, shape in shapes.items()}


def test_a_batch_has_a_token_a_position_and_a_mask_of_each_slot() -> None:
    step = buffers(in_place=False)
    shapes = step.fill([np.array([7]), np.array([9])], [3, 8], 8, every_row=False)
    inputs = filled(step, shapes)
    assert inputs["input_ids"] == [[7], [9]]
    assert inputs["position_ids"] == [[3], [8]]
    assert inputs["write_indices"] == [3, 8]
    assert inputs["logits_index"] == [0]
    # Eight positions of the cache, and the new token behind them.
    first, second = inputs["attention_mask"]
    assert first == [[[0] * 3 + [FAR] * 5 + [0]]]
    assert second == [[[0] * 9]]


def test_a_chunk_sees_what_comes_before_each_of_its_tokens() -> None:
    step = buffers(in_place=False, window=3)
    inputs = filled(step, step.fill([np.array([5, 6, 7])], [2], 8, every_row=True))
    assert inputs["position_ids"] == [[2, 3, 4]]
    assert inputs["logits_index"] == [0, 1, 2]
    ((full,),) = inputs["attention_mask"]
    padding = [FAR] * 6
    assert full == [
        [0, 0, *padding, 0, FAR, FAR],
        [0, 0, *padding, 0, 0, FAR],
        [0, 0, *padding, 0, 0, 0],
    ]
    ((window,),) = inputs["window_mask"]
    assert window[2] == [FAR, FAR, *padding, 0, 0, 0]


def test_a_mask_of_a_cache_that_is_written_in_place_covers_the_new_tokens() -> None:
    step = buffers(in_place=True)
    inputs = filled(step, step.fill([np.array([5, 6])], [2], 16, every_row=False))
    ((full,),) = inputs["attention_mask"]
    assert full == [[0] * 3 + [FAR] * 13, [0] * 4 + [FAR] * 12]
    assert inputs["logits_index"] == [1]


@pytest.mark.parametrize("in_place", [True, False])
def test_every_tensor_has_an_aligned_address_of_its_own(in_place: bool) -> None:
    addresses = buffers(in_place=in_place).addresses
    assert ("present.0.key" in addresses) != in_place
    assert len({*addresses.values()}) == len(addresses)
    assert not any(address % 256 for address in addresses.values())
