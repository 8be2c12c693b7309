"""Writes MLX weights: a folder that `mlx_lm.load` opens. It needs only numpy, so any machine can export.

Each quantized matrix `X`, the embedding included, is stored as `X.weight`, uint32 `[out, in * bits / 32]` with the
first code in the lowest bits, and `X.scales` and `X.biases`, `[out, in / group]`: `w = code * scale + bias`.
Sources: mlx/python/src/ops.cpp (`quantize`), and mlx-lm's utils.py (`save_model`, `load_model`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Linear, Rope
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.writers.base import Artifact, Progress, Weights
from edgekit.export.writers.hf_config import hf_config
from edgekit.export.writers.mlx_limits import check_mlx_support
from edgekit.export.writers.safetensors import ShardWriter
from edgekit.profile import GROUP_SIZES

__all__ = ["MlxWriter"]

FloatArray = npt.NDArray[np.float32]

# Elements packed at a time.
_SPAN = 1 << 22
_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class MlxWriter:
    """Writes MLX weights into a folder.

    Attributes:
        dtype: Dtype of scales, norms, biases and unquantized matrices, in which mlx computes. float16 rather than
            bfloat16, because M1 and M2 have no bfloat16 arithmetic.
        max_shard_bytes: Larger models are split into shards. mlx-lm's are 5 GiB; smaller ones can be hashed and
            flushed to disk while the next is written.
    """

    dtype: Literal["float16", "float32"] = "float16"
    max_shard_bytes: int = 1 << 30

    def __call__(self, decoder: Decoder, weights: Weights, folder: Path, progress: Progress) -> Artifact:
        """Write the artifact.

        Raises:
            ExportError: MLX does not support a tensor's grid, a value is too large for the dtype, or mlx-lm does not
                support the model.
        """
        check_mlx_support(decoder)
        shapes = decoder.tensor_shapes()
        linears = {linear.weight: linear for linear in (decoder.embedding, *decoder.stored_linears())}
        modules = {name: name.removesuffix(".weight") for name in linears}
        grids: dict[str, tuple[int, int]] = {}
        names = [*shapes, *(f"{module}.{part}" for module in modules.values() for part in ("scales", "biases"))]
        with ShardWriter(folder, names, self.max_shard_bytes) as shards:
            for name in dict.fromkeys((*(linear.weight for linear in weights.order), *shapes)):
                if name not in linears:
                    vector = weights.vector(name)
                    shards.add(name, self._code, vector.shape, iter((self._to_dtype(name, vector),)))
                else:
                    matrix = weights.table(linears[name])
                    if isinstance(matrix, GroupedTensor):
                        self._add_codes(shards, linears[name], matrix)
                        grids[modules[name]] = (matrix.bits, matrix.group_size)
                    else:
                        self._add_floats(shards, name, matrix)
                progress(name)
            parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            files, hashes = shards.finish(parameters)
        return Artifact(files=files, config=self._config(decoder, grids), sha256=hashes)

    def _add_floats(self, shards: ShardWriter, name: str, rows: FloatRows) -> None:
        shards.add(name, self._code, rows.shape, (self._to_dtype(name, part) for part in rows.parts()))

    def _add_codes(self, shards: ShardWriter, linear: Linear, tensor: GroupedTensor) -> None:
        if tensor.bits not in _BITS or tensor.group_size not in GROUP_SIZES:
            raise ExportError(
                f"`{linear.name}`: MLX does not support {tensor.bits}-bit codes in groups of {tensor.group_size}",
                hint=f"bits: {_or(_BITS)}; group sizes: {_or(GROUP_SIZES)}",
            )
        out, width = tensor.shape
        shards.add(linear.weight, "U32", (out, width * tensor.bits // 32), _packed(tensor))
        for part, values in (("scales", tensor.scales), ("biases", tensor.offsets)):
            name = f"{linear.name}.{part}"
            stored = self._to_dtype(name, values, exact=True)
            shards.add(name, self._code, stored.shape, iter((stored,)))

    @property
    def _code(self) -> str:
        return {"float16": "F16", "float32": "F32"}[self.dtype]

    def _to_dtype(self, name: str, values: FloatArray, *, exact: bool = False) -> npt.NDArray[np.generic]:
        from edgekit.export.quantization.float16 import EXACT, ROUNDED, TOO_LARGE, to_float16

        stored: npt.NDArray[np.generic]
        if self.dtype == "float16":
            stored, lost = to_float16(values)
        else:
            stored, lost = values, EXACT if np.isfinite(values).all() else TOO_LARGE
        if lost == TOO_LARGE:
            raise ExportError(
                f"`{name}` has values out of {self.dtype}'s range",
                hint="is the checkpoint damaged? Weights of an intact model stay far below 1000",
            )
        if exact and lost == ROUNDED:
            raise ExportError(
                f"`{name}` would change when stored as {self.dtype}",
                hint=f"quantize to a grid whose scales are {self.dtype}",
            )
        return stored

    def _config(self, decoder: Decoder, grids: dict[str, tuple[int, int]]) -> dict[str, object]:
        """Return the `config.json`, including mlx-lm's quantization keys."""
        config = hf_config(decoder, self.dtype)
        if decoder.model_type != "gemma3_text" and not decoder.windowed:
            # mlx-lm searches `layer_types` for a full-attention layer and would find none.
            config = {key: value for key, value in config.items() if key not in {"layer_types", "sliding_window"}}
        if decoder.rope.kind == "longrope":
            config["rope_scaling"] = {**decoder.rope.scaling, "type": "longrope", "long_factor": _factors(decoder.rope)}
        if grids:
            (bits, group_size), _ = Counter(grids.values()).most_common(1)[0]
            quantization: dict[str, object] = {"group_size": group_size, "bits": bits, "mode": "affine"}
            for module, (own_bits, own_group) in grids.items():
                if (own_bits, own_group) != (bits, group_size):
                    quantization[module] = {"group_size": own_group, "bits": own_bits, "mode": "affine"}
            config["quantization"] = config["quantization_config"] = quantization
        return config


def _factors(rope: Rope) -> list[float]:
    """LongRoPE's factors for this context; mlx-lm applies `long_factor` at any length."""
    plain = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    return [float(factor) for factor in plain / np.array(rope.frequencies)]


def _packed(tensor: GroupedTensor) -> Iterator[npt.NDArray[np.generic]]:
    """Codes as uint32 rows, a few rows at a time."""
    from edgekit.export.writers.nibbles import pack_pairs

    out, width = tensor.shape
    rows = max(1, _SPAN // width)
    for start in range(0, out, rows):
        codes = np.ascontiguousarray(tensor.codes[start : start + rows])
        if tensor.bits == 8:
            yield codes
            continue
        # Little-endian: the lowest bits of a word are its first byte.
        packed = np.empty((len(codes), width // 2), np.uint8)
        pack_pairs(codes.reshape(-1), packed.reshape(-1))
        yield packed


def _or(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"
