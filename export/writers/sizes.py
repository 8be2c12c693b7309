"""Computes the size of an artifact, and the memory its weights take in a runner.

Predicts sizes from a model's description and sample rows of each kind of matrix, or reads them from an artifact's
files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError, ConfigError, option
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.writers.onnx.packing import int4_planes, offset_kind
from edgekit.profile import ENGINES
from edgekit.runners.cpu.onnx_reader.match_model import Unsupported
from edgekit.runners.cpu.onnx_reader.match_model import describe as describe_graph
from edgekit.runners.cpu.weights import fits_half, stored_factors
from edgekit.target import Target

__all__ = ["Rows", "Sizes", "StoredMatrix", "predicted_sizes", "runner_for", "size_exceeded", "sizes_of_files"]

Rows = GroupedTensor | npt.NDArray[np.float32]
Sample = Callable[[Linear], Rows]
"""Returns sample rows of a matrix, quantized by the recipe."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """The sizes of one weight matrix in an artifact, in bytes.

    Attributes:
        weights: Codes, or float weights.
        scales: Scales, one or more per group.
        offsets: Zero points and offsets.
        bits: Bits per code; 0 for floating point.
        wide: Whether the CPU kernels keep its scales and offsets in float32, because float16 cannot represent them.
        kernel_factors: Bytes of its scales and offsets in the CPU kernels.
    """

    weights: int = 0
    scales: int = 0
    offsets: int = 0
    bits: int = 0
    wide: bool = False
    kernel_factors: int = 0

    @property
    def total(self) -> int:
        """All bytes of the matrix."""
        return self.weights + self.scales + self.offsets

    @property
    def in_cpu_kernels(self) -> int:
        """Bytes in the CPU kernels."""
        return self.weights + self.kernel_factors

    def with_factors(self, groups: int, *, wide: bool, offsets: bool) -> StoredMatrix:
        """Return the matrix with scales and perhaps offsets of so many groups, of all rows, in the CPU kernels."""
        return replace(self, wide=wide, kernel_factors=groups * (4 if wide else 2) * (2 if offsets else 1))


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of an artifact's weights, in bytes.

    Attributes:
        table: The embedding table, of which a step reads only the rows of its tokens.
        head: The output head, which is read completely for every token.
        head_shared: The head is stored once with the table.
        layers: Matrices of the layers.
        vectors: Norms, biases, constants.
        rope: The RoPE tables.
    """

    table: StoredMatrix
    head: StoredMatrix
    head_shared: bool
    layers: tuple[StoredMatrix, ...]
    vectors: int
    rope: int

    @property
    def stored(self) -> int:
        """Bytes of the weights in the artifact's files."""
        head = 0 if self.head_shared else self.head.total
        return self.table.total + head + sum(matrix.total for matrix in self.layers) + self.vectors + self.rope

    def with_8_bits(self, size: int) -> Sizes:
        """Return the sizes with 8 bits instead of 4 in as many layers as fit `size` bytes.

        Raises:
            ConfigError: The artifact is larger than `size` even with 4 bits.
        """
        if size < self.stored:
            raise size_exceeded(self.stored, size)
        budget, layers = size - self.stored, []
        for matrix in self.layers:
            added = min(budget, matrix.weights if matrix.bits == 4 else 0)
            layers.append(replace(matrix, weights=matrix.weights + added))
            budget -= added
        return replace(self, layers=tuple(layers))

    @property
    def read_per_token(self) -> int:
        """Bytes of weights read to decode one token."""
        return self.head.total + sum(matrix.total for matrix in self.layers) + self.vectors

    @property
    def quantized(self) -> bool:
        """Whether all matrices are quantized."""
        return all(matrix.scales for matrix in (self.table, self.head, *self.layers))

    def resident(self, runner: str) -> int:
        """Bytes that the weights take in a runner's memory.

        The CPU kernels copy every matrix and release the file; they copy the RoPE tables up to the context length.

        onnxruntime maps the file: only the used rows of the embedding and RoPE tables are in memory, and the system can
        evict them. It repacks each quantized matrix with a float32 sum per group, and at 4 bits with a second copy of
        the scales (measured with 1.32 on x86-64).
        """
        if runner == "cpu":
            matrices = [self.table, *self.layers] if self.head_shared else [self.table, self.head, *self.layers]
            return sum(matrix.in_cpu_kernels for matrix in matrices) + self.vectors
        if runner != "onnxruntime":
            return self.stored
        copies = {4: 2, 8: 1}
        in_use = (self.head, *self.layers)
        packed = sum(matrix.total + matrix.scales * copies.get(matrix.bits, 0) for matrix in in_use)
        return packed + self.vectors


def size_exceeded(min_bytes: int, size: int) -> ConfigError:
    """Return the error for a model that does not fit a size even with 4 bits."""
    return ConfigError(
        f"the model takes {min_bytes / 2**20:.1f} MiB at 4 bits, which exceeds the {size / 2**20:.1f} MiB of "
        f"{option('fit_bytes')}",
        hint=f"use a larger {option('fit_bytes')}, a larger {option('group_size')}, or fewer {option('head_bits')} and "
        f"{option('embedding_bits')}",
    )


def predicted_sizes(decoder: Decoder, artifact_format: str, sample: Sample) -> Sizes:
    """Predict the sizes of an artifact.

    Args:
        decoder: The model.
        artifact_format: A dialect, or `mlx`.
        sample: Called for the embedding and every other matrix.
    """
    onnx = artifact_format != "mlx"
    # MLX keeps fused matrices fused; their size is the sum of their parts.
    layers = [linear for layer in decoder.layers for linear in layer.linears()]
    table = _matrix(decoder.embedding, sample(decoder.embedding), artifact_format)
    if not decoder.tied:
        head, shared = _matrix(decoder.head, sample(decoder.head), artifact_format), False
    elif artifact_format in {"mlx", "onnxruntime"} or not table.bits:
        head, shared = table, True
    else:
        # TensorRT needs rows of int32 words for the embedding and INT4 columns for the head.
        head, shared = _matrix(decoder.head, sample(decoder.embedding), artifact_format), False
    if onnx and artifact_format != "onnxruntime" and table.bits:
        table = _int32_table(decoder.embedding, sample(decoder.embedding))
    element = 4 if artifact_format == "onnxruntime" else 2
    biases = sum(linear.out_features for linear in layers if linear.bias)
    # TensorRT's norms are FP32. The zero padding of fused biases is negligible.
    vectors = sum(decoder.norms().values()) * (4 if onnx else 2) + biases * element
    return Sizes(
        table=table,
        head=head,
        head_shared=shared,
        layers=tuple(_matrix(linear, sample(linear), artifact_format) for linear in layers),
        vectors=vectors,
        rope=_rope_bytes(decoder, artifact_format) if onnx else 0,
    )


def _rope_bytes(decoder: Decoder, dialect: str) -> int:
    ropes = {layer.rope for layer in decoder.layers}
    if dialect == "onnxruntime":
        # One position more than the context: see the dialect.
        return sum(2 * 4 * (decoder.max_position + 1) * (decoder.head_dim // 2) for _ in ropes)
    return sum(2 * 2 * decoder.max_position * (rope.dim // 2) for rope in ropes)


def _matrix(linear: Linear, rows: Rows, artifact_format: str) -> StoredMatrix:
    out, inner = linear.out_features, linear.in_features
    element = 4 if artifact_format == "onnxruntime" else 2
    if not isinstance(rows, GroupedTensor):
        return StoredMatrix(weights=out * inner * element)
    groups = inner // rows.group_size
    codes, scales = out * inner * rows.bits // 8, out * groups * element
    if artifact_format == "mlx":
        return StoredMatrix(codes, scales, scales, rows.bits)
    kind = offset_kind(rows)
    # An estimate: a single scale outside the sample can make the matrix wide.
    wide = not (fits_half(rows.scales) and (kind is Offset.SYMMETRIC or fits_half(rows.offsets)))
    if artifact_format == "onnxruntime":
        zero_points = 0 if kind is Offset.SYMMETRIC else out * (-(-groups // 2) if rows.bits == 4 else groups)
        offsets = zero_points + (scales if kind is Offset.FLOAT else 0)
        stored = StoredMatrix(codes, scales, offsets, rows.bits)
    else:
        planes, residual = int4_planes(rows)
        stored = StoredMatrix(
            weights=len(planes) * -(-out * inner // 2),
            scales=len(planes) * scales,
            offsets=0 if residual is None else scales,
            bits=rows.bits,
        )
    return stored.with_factors(out * groups, wide=wide, offsets=kind is not Offset.SYMMETRIC)


def _int32_table(table: Linear, rows: Rows) -> StoredMatrix:
    """The embedding table in TensorRT's dialects: codes in int32 words."""
    assert isinstance(rows, GroupedTensor)  # noqa: S101  the caller checked it
    out, inner = table.out_features, table.in_features
    per_group = 2 * out * (inner // rows.group_size)
    symmetric = offset_kind(rows) is Offset.SYMMETRIC
    wide = not (fits_half(rows.scales) and (symmetric or fits_half(rows.offsets)))
    stored = StoredMatrix(out * inner * rows.bits // 8, per_group, 0 if symmetric else per_group, rows.bits)
    return stored.with_factors(per_group // 2, wide=wide, offsets=not symmetric)


def sizes_of_files(folder: Path, kind: str, decoder: Decoder) -> Sizes:
    """Read the sizes of an artifact from its files, without its weights.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`.
        decoder: The model; only its tensor names are used.

    Raises:
        BundleError: A file is missing or not in its format.
    """
    try:
        entries = list(_onnx_entries(folder) if kind == "onnx" else _mlx_entries(folder))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BundleError(f"{folder} has no readable artifact: {error}") from error
    sizes: dict[str, dict[str, int]] = {}
    bits_of: dict[str, int] = {}
    rope = vectors = 0
    shared = False
    for name, size, bits, is_alias in entries:
        module, part = _split(name)
        if name.startswith(("cos_cache", "sin_cache")):
            rope += size
        elif part is None:
            vectors += size
        else:
            parts = sizes.setdefault(module, {"weights": 0, "scales": 0, "offsets": 0})
            parts[part] += size
            bits_of[module] = max(bits_of.get(module, 0), bits)
            shared = shared or is_alias
    matrices = {
        module: StoredMatrix(parts["weights"], parts["scales"], parts["offsets"], bits_of[module])
        for module, parts in sizes.items()
    }
    for module, factors in (_kernel_factors(folder) if kind == "onnx" else {}).items():
        if module in matrices:
            groups, wide, offsets = factors
            matrices[module] = matrices[module].with_factors(groups, wide=wide, offsets=offsets)
    table = matrices.pop(decoder.embedding.name, StoredMatrix())
    head = matrices.pop(decoder.head.name, None)
    if head is None or shared:
        # The scales of a shared table are stored under the table's name.
        head, shared = replace(table, bits=0 if head is None else head.bits), True
    return Sizes(table, head, shared, tuple(matrices.values()), vectors, rope)


def _kernel_factors(folder: Path) -> dict[str, tuple[int, bool, bool]]:
    """The arguments of `StoredMatrix.with_factors` for each matrix; none if the kernels do not support the graph."""
    found = {}
    try:
        model = describe_graph(folder)
        for matrix in model.matrices():
            wide, offsets = stored_factors(matrix, model.release_pages)
            found[matrix.name.removesuffix(".weight")] = matrix.scales.size, wide, offsets
    except (BundleError, Unsupported):
        return {}
    return found


def runner_for(target: Target, dialect: str | None, sizes: Sizes, requested: str | None = None) -> str:
    """Choose the runner of a target that runs an artifact; the CPU kernels support only quantized matrices.

    Args:
        target: The device.
        dialect: The artifact's dialect.
        sizes: The artifact's sizes.
        requested: The requested runner; None takes the first suitable one.

    Raises:
        ConfigError: The requested runner cannot run the artifact.
    """
    cpu_kernels = dialect in {"onnxruntime", "portable", "native"} and sizes.quantized
    suitable = [runner for runner in target.runners if runner != "cpu" or cpu_kernels]
    if requested == "tensorrt":
        # Of both libraries in the configuration.
        requested = next((runner for runner in suitable if runner in ENGINES), requested)
    if requested is not None and requested not in suitable:
        raise ConfigError(
            f"`{target.name}` has no runner `{requested[:40]}` for this artifact",
            hint=f"suitable: {', '.join(suitable)}",
        )
    return requested or suitable[0]


_PARTS = {
    "qweight": "weights", "low_qweight": "weights", "scales": "scales", "low_scales": "scales",
    "zero_points": "offsets", "offsets": "offsets", "biases": "offsets", "weight": "weights",
}  # fmt: skip


def _split(name: str) -> tuple[str, str | None]:
    """Split a tensor's name into its module and its part of a matrix (None for norms, biases and constants)."""
    module, _, last = name.rpartition(".")
    part = _PARTS.get(last)
    if part is None or module.endswith("norm"):
        return module, None
    return module.removesuffix(".weight"), part


def _onnx_entries(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    """Yield each initializer's name, bytes, bits per code (0 for none), and whether it aliases an earlier one."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    bits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in {"MatMulNBits", "DequantizeLinear"} and len(node.input) > 1:
            node_bits = {item.name: item.i for item in node.attribute}.get("bits", 4)
            bits |= dict.fromkeys(node.input[1:3], node_bits) | {node.input[0]: node_bits}
    seen: set[str] = set()
    for tensor in graph.initializer:
        location = {entry.key: entry.value for entry in tensor.external_data}
        size = int(location["length"]) if "length" in location else len(tensor.raw_data)
        start = location.get("offset", tensor.name)
        yield tensor.name, size, bits.get(tensor.name, 0), start in seen
        seen.add(start)


def _mlx_entries(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise ValueError("model.safetensors is missing")
    for shard in shards:
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                yield name, stop - start, 0, False
