"""What the engines of a model take and give: read from the engines, not from the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RunnerError

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt

__all__ = ["BATCH", "CHUNK", "DECODE", "EngineTensors", "describe_engines", "present_of"]

DECODE, CHUNK, BATCH = 0, 1, 2
"""The optimization profiles: one new token, a prefill chunk, and one new token of each of several sequences, which an
engine may lack."""

_CACHE = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_MASKS = ("attention_mask", "window_mask")
_DTYPES = {"FLOAT": np.float32, "HALF": np.float16}
_PORTABLE_RANK = 5


@dataclass(frozen=True, slots=True)
class EngineTensors:
    """Inputs and outputs of engines that run one after another.

    Attributes:
        caches: The inputs of the KV cache, by layer: key, then value.
        heads: KV heads.
        head_dim: Elements of a head.
        dtype: Of the KV cache and the masks.
        in_place: The engines write new rows into the cache (`native`), which has exactly `capacity` positions.
            Otherwise (`portable`) they return them, and take a cache of any length up to `capacity`.
        block: Positions of a block, if the caches are in blocks; else 1.
        capacity: Max positions of a cache.
        masks: The masks.
        max_batch: Max sequences that decode in one execution.
        max_chunk: Max tokens of a prefill chunk.
        vocab_size: Width of a row of logits.
        boundaries: Tensors that one engine gives and the next one takes, with their bytes per token.
    """

    caches: tuple[str, ...]
    heads: int
    head_dim: int
    dtype: np.dtype[np.generic]
    in_place: bool
    block: int
    capacity: int
    masks: tuple[str, ...]
    max_batch: int
    max_chunk: int
    vocab_size: int
    boundaries: Mapping[str, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of one position of one head."""
        return self.head_dim * self.dtype.itemsize

    def positions(self, count: int) -> tuple[int, ...]:
        """Return the dimensions of a cache that say how many positions it has."""
        return (count,) if self.in_place else (count // self.block, self.block)


def present_of(cache: str) -> str:
    """Return the output that belongs to an input of the KV cache."""
    return cache.replace("past_key_values", "present")


def describe_engines(library: ModuleType, engines: Sequence[trt.ICudaEngine]) -> EngineTensors:
    """Read what engines that run one after another take and give.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        engines: In the order in which they run.

    Raises:
        RunnerError: They are not the engines of a model that edgekit exported, or lack a profile.
    """
    inputs: dict[str, trt.ICudaEngine] = {}
    outputs: dict[str, trt.ICudaEngine] = {}
    for engine in engines:
        if engine.num_optimization_profiles <= CHUNK:
            raise RunnerError("an engine lacks the profile for prefill chunks", hint="build it again")
        for name in tensor_names(engine):
            found = inputs if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT else outputs
            found.setdefault(name, engine)
    matches = filter(None, map(_CACHE.fullmatch, inputs))
    caches = tuple(match[0] for match in sorted(matches, key=lambda match: (int(match[1]), match[2])))
    missing = (
        {"input_ids", "position_ids"} - inputs.keys()
        or {"logits"} - outputs.keys()
        or (set() if caches else {"past_key_values.0.key"})
    )
    if missing:
        raise RunnerError(f"the engines have no `{min(missing)}`", hint="build them again from this bundle")
    engine = inputs[caches[0]]
    profiles = min(one.num_optimization_profiles for one in engines)
    shape: tuple[int, ...] = engine.get_tensor_shape(caches[0])[:]
    in_place = len(shape) != _PORTABLE_RANK
    if in_place:
        capacity = shape[2]
        _check_aliases(engines, caches)
    else:
        longest = (_largest(engine, caches[0], profile) for profile in range(profiles))
        capacity = min(blocks * block for _, _, blocks, block, _ in longest)
    ids = inputs["input_ids"]
    return EngineTensors(
        caches=caches,
        heads=shape[1],
        head_dim=shape[-1],
        dtype=np.dtype(_DTYPES[engine.get_tensor_dtype(caches[0]).name]),
        in_place=in_place,
        block=1 if in_place else shape[3],
        capacity=capacity,
        masks=tuple(name for name in _MASKS if name in inputs),
        max_batch=_largest(ids, "input_ids", BATCH)[0] if profiles > BATCH else 1,
        max_chunk=_largest(ids, "input_ids", CHUNK)[1],
        vocab_size=outputs["logits"].get_tensor_shape("logits")[2],
        boundaries={name: _token_bytes(outputs[name], name) for name in outputs if name in inputs},
    )


def tensor_names(engine: trt.ICudaEngine) -> list[str]:
    """Return the names of an engine's inputs and outputs."""
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _largest(engine: trt.ICudaEngine, name: str, profile: int) -> tuple[int, ...]:
    """The largest shape of an input in a profile."""
    largest: tuple[int, ...] = engine.get_tensor_profile_shape(name, profile)[2][:]
    return largest


def _token_bytes(engine: trt.ICudaEngine, name: str) -> int:
    rest: tuple[int, ...] = engine.get_tensor_shape(name)[2:]
    return prod(rest) * np.dtype(_DTYPES[engine.get_tensor_dtype(name).name]).itemsize


def _check_aliases(engines: Sequence[trt.ICudaEngine], caches: Sequence[str]) -> None:
    """An engine that writes the cache elsewhere would never see its own rows again."""
    for engine in engines:
        # TensorRT 10.15 and later.
        aliased_input = getattr(engine, "get_aliased_input_tensor", None)
        if aliased_input is None:
            continue
        names = tensor_names(engine)
        for cache in caches:
            if present_of(cache) in names and aliased_input(present_of(cache)) != cache:
                raise RunnerError(f"the engine does not write `{cache}` in place", hint="build it again")
