"""GPTQ and AWQ checkpoints written the long way, from the formats' descriptions, and what their weights must be.

Independent of the readers: codes are packed one after the other, in loops that follow the original packers
(AutoGPTQ's and AutoAWQ's `pack`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Packed:
    """One layer before packing.

    Attributes:
        codes: `[out, in]`.
        zeros: `[out, groups]`, the true zero points.
        scales: `[out, groups]`, in the type they are stored in.
        groups_of: The group of every input.
        bits: Bits per code.
    """

    codes: Array
    zeros: Array
    scales: Array
    groups_of: Array
    bits: int

    def weight(self) -> npt.NDArray[np.float32]:
        """`(code - zero point) * scale`, float32 `[out, in]`."""
        steps = self.codes.astype(np.int64) - self.zeros.astype(np.int64)[:, self.groups_of]
        return steps.astype(np.float32) * self.scales.astype(np.float32)[:, self.groups_of]


def random_layer(
    out: int,
    width: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = False,
    dtype: Any = np.float16,
    seed: int = 0,
) -> Packed:
    """A layer of random codes; zero points start at 1, as quantizers make them where a group has a negative weight."""
    rng = np.random.default_rng(seed)
    size = width if group_size == -1 else group_size
    groups = -(-width // size)
    middle = 1 << (bits - 1)
    zeros = np.full((out, groups), middle) if symmetric else rng.integers(1, 1 << bits, (out, groups))
    scales = (rng.uniform(0.5, 2, (out, groups)) * 0.02).astype(dtype)
    return Packed(rng.integers(0, 1 << bits, (out, width)), zeros, scales, np.arange(width) // size, bits)


def quantized_layer(weight: Array, *, bits: int = 4, group_size: int = 32, symmetric: bool = False) -> Packed:
    """A layer whose weights are near `weight`."""
    out, width = weight.shape
    grouped = weight.reshape(out, -1, width if group_size == -1 else group_size).astype(np.float64)
    low, high = np.minimum(grouped.min(axis=-1), -1e-5), np.maximum(grouped.max(axis=-1), 1e-5)
    top = (1 << bits) - 1
    if symmetric:
        scales = (np.maximum(-low, high) * 2 / top).astype(np.float16)
        zeros = np.full(scales.shape, 1 << (bits - 1))
    else:
        scales = ((high - low) / top).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales), 1, top).astype(np.int64)
    codes = np.clip(np.rint(grouped / scales[..., None].astype(np.float64)) + zeros[..., None], 0, top)
    groups_of = np.arange(width) // grouped.shape[-1]
    return Packed(codes.reshape(out, width).astype(np.int64), zeros, scales, groups_of, bits)


def in_words(rows: Array, bits: int) -> Array:
    """Pack along the first axis into 32-bit words, the first code lowest: GPTQ's packing of codes and zero points."""
    columns = rows.astype(np.uint64)
    words: list[Array] = []
    if bits != 3:
        per_word = 32 // bits
        for first in range(0, len(columns), per_word):
            word = np.zeros(columns.shape[1], dtype=np.uint64)
            for index, row in enumerate(columns[first : first + per_word]):
                word |= row << np.uint64(index * bits)
            words.append(word)
    else:  # 32 codes in three words; the 11th and the 22nd span two
        for first in range(0, len(columns), 32):
            one, two, three = (np.zeros(columns.shape[1], dtype=np.uint64) for _ in range(3))
            code = columns[first : first + 32]
            for index in range(10):
                one |= code[index] << np.uint64(3 * index)
                two |= code[11 + index] << np.uint64(3 * index + 1)
                three |= code[22 + index] << np.uint64(3 * index + 2)
            one |= (code[10] & np.uint64(0b011)) << np.uint64(30)
            two |= code[10] >> np.uint64(2)
            two |= (code[21] & np.uint64(0b001)) << np.uint64(31)
            three |= code[21] >> np.uint64(1)
            words += [one, two, three]
    return np.stack(words).astype(np.uint32).view(np.int32)


def gptq_parts(name: str, layer: Packed, *, v2: bool = False, index: bool = True) -> dict[str, Array]:
    """A layer as AutoGPTQ stores it, or in GPTQModel's second format."""
    zeros = layer.zeros if v2 else layer.zeros - 1
    parts = {
        f"{name}.qweight": in_words(layer.codes.T, layer.bits),
        f"{name}.qzeros": np.ascontiguousarray(in_words(zeros, layer.bits).T),
        f"{name}.scales": np.ascontiguousarray(layer.scales.T),
    }
    if index:
        parts[f"{name}.g_idx"] = layer.groups_of.astype(np.int32)
    return parts


def awq_parts(name: str, layer: Packed) -> dict[str, Array]:
    """A layer as AutoAWQ stores it for its GEMM kernels."""

    def words(values: Array) -> Array:  # [out, n] to [n, out / 8]
        out, count = values.shape
        packed = np.zeros((count, out // 8), dtype=np.uint64)
        for column in range(out // 8):
            for lane, row in enumerate(AWQ_ORDER):
                packed[:, column] |= values[column * 8 + row].astype(np.uint64) << np.uint64(4 * lane)
        return packed.astype(np.uint32).view(np.int32)

    return {
        f"{name}.qweight": words(layer.codes),
        f"{name}.qzeros": words(layer.zeros),
        f"{name}.scales": np.ascontiguousarray(layer.scales.T),
    }


def pack_checkpoint(
    folder: Path, method: str, *, bits: int = 4, group_size: int = 32, symmetric: bool = False, **settings: Any
) -> dict[str, npt.NDArray[np.float32]]:
    """Pack the linear layers of a tiny checkpoint, as published ones are: embeddings, norms and head stay float16.

    Args:
        folder: Made by `tests.models.tiny_checkpoint`; rewritten.
        method: `gptq` or `awq`.
        bits: Bits per code.
        group_size: Inputs per group; -1 is all.
        symmetric: Whether every zero point is in the middle.
        **settings: Further keys of `quantization_config`.

    Returns:
        The values that every tensor must read as.
    """
    stored: dict[str, Array] = {}
    expected: dict[str, npt.NDArray[np.float32]] = {}
    for name, values in load_file(folder / "model.safetensors").items():
        wide = values.astype(np.float32)
        if name.endswith("_proj.weight"):
            layer = quantized_layer(wide, bits=bits, group_size=group_size, symmetric=symmetric)
            module = name.removesuffix(".weight")
            stored |= awq_parts(module, layer) if method == "awq" else gptq_parts(module, layer)
            expected[name] = layer.weight()
        else:
            stored[name] = wide.astype(np.float16)
            expected[name] = stored[name].astype(np.float32)
    if method == "gptq":  # as AutoGPTQ does: a bias beside every layer, zero where the model has none
        for name in list(expected):
            bias = name.removesuffix(".weight") + ".bias"
            if name.endswith("_proj.weight") and bias not in expected:
                stored[bias] = np.zeros(len(expected[name]), dtype=np.float16)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    quantization: dict[str, Any] = {"quant_method": method, "bits": bits, "group_size": group_size}
    if method == "gptq":
        quantization |= {"desc_act": False, "sym": symmetric}
    else:
        quantization |= {"version": "gemm", "zero_point": True, "modules_to_not_convert": None}
    config["quantization_config"] = quantization | settings
    (folder / "config.json").write_text(json.dumps(config))
    return expected


SCALE_TYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}
