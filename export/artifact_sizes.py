"""How large an artifact is, and what a runner makes of it.

It goes by a description and a few rows of each kind of matrix, or by the artifact's own files. It knows what each
writer stores for a matrix on a grid, and nothing of contexts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError, ConfigError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.writers.onnx.packing import int4_planes, offset_kind
from edgekit.runners.cpu.description import Unsupported
from edgekit.runners.cpu.description import describe as describe_graph
from edgekit.runners.cpu.weights import fits_half, is_wide
from edgekit.target import Target

__all__ = ["Rows", "Sizes", "StoredMatrix", "predicted_sizes", "runner_for", "sizes_of_files", "too_large"]

Rows = GroupedTensor | npt.NDArray[np.float32]
Sample = Callable[[Linear], Rows]
"""Gives a few rows of a matrix as the recipe would put them on the target's grid."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One weight matrix in an artifact, in bytes.

    Attributes:
        weights: Codes, or the numbers themselves.
        scales: One or more per group.
        offsets: Zero points and offsets.
        bits: Of a code; 0 for floating point.
        wide: Whether the CPU kernels keep its factors in float32, as float16 would lose some.
    """

    weights: int = 0
    scales: int = 0
    offsets: int = 0
    bits: int = 0
    wide: bool = False

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scales + self.offsets

    @property
    def in_kernels(self) -> int:
        """As the CPU kernels hold it: a float16 scale per group, and where it has offsets of any kind one beside it.

        Stored are float32 scales.
        """
        factors = self.scales if self.wide else self.scales // 2
        return self.weights + factors + (factors if self.offsets else 0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """An artifact, in bytes by use.

    Attributes:
        table: The token table, of which a step reads only the rows of its tokens.
        head: What the output head reads, all of it for every token.
        head_shares: The head's bytes are the table's, and stored once.
        layers: Matrices of the layers.
        vectors: Norms, biases, constants.
        rope: Tables of the rotary embedding.
    """

    table: StoredMatrix
    head: StoredMatrix
    head_shares: bool
    layers: tuple[StoredMatrix, ...]
    vectors: int
    rope: int

    @property
    def stored(self) -> int:
        """Bytes of the weights in the artifact's files."""
        head = 0 if self.head_shares else self.head.total
        return self.table.total + head + sum(matrix.total for matrix in self.layers) + self.vectors + self.rope

    def widened(self, size: int) -> Sizes:
        """The artifact with 8 bits in place of 4 in its layers, as far as it then takes no more than `size` bytes.

        Raises:
            ConfigError: It takes more than that as it is.
        """
        if size < self.stored:
            raise too_large(self.stored, size)
        room, layers = size - self.stored, []
        for matrix in self.layers:
            more = min(room, matrix.weights if matrix.bits == 4 else 0)
            layers.append(replace(matrix, weights=matrix.weights + more))
            room -= more
        return replace(self, layers=tuple(layers))

    @property
    def read_per_token(self) -> int:
        """Bytes that one token's step reads, the KV cache aside."""
        return self.head.total + sum(matrix.total for matrix in self.layers) + self.vectors

    @property
    def quantized(self) -> bool:
        """Whether every matrix is."""
        return all(matrix.scales for matrix in (self.table, self.head, *self.layers))

    def resident(self, runner: str) -> int:
        """Bytes that a runner holds.

        The CPU kernels copy every matrix and let the file go; RoPE's tables they copy as far as the context goes.

        onnxruntime maps the file: of the token table and of RoPE only the rows in use are in memory, and the system
        takes them back when it needs the room. It packs each quantized matrix anew with a float32 sum for every group,
        and at 4 bits with the scales too, while the scales themselves stay (measured with 1.32 on x86-64).
        """
        if runner == "cpu":
            matrices = [self.table, *self.layers] if self.head_shares else [self.table, self.head, *self.layers]
            return sum(matrix.in_kernels for matrix in matrices) + self.vectors
        if runner != "onnxruntime":
            return self.stored
        copies = {4: 2, 8: 1}
        packed = sum(one.total + one.scales * copies.get(one.bits, 0) for one in (self.head, *self.layers))
        return packed + self.vectors


def too_large(least: int, size: int) -> ConfigError:
    """The error for a model that takes more with 4 bits than `--fit` gives it."""
    return ConfigError(
        f"the model takes {least / 2**20:.1f} MiB with 4 bits, and {size / 2**20:.1f} MiB were asked for",
        hint="ask for more, for a larger --group-size, or for fewer --head-bits and --embedding-bits",
    )


def predicted_sizes(decoder: Decoder, artifact_format: str, sample: Sample) -> Sizes:
    """Compute what a writer would write.

    Args:
        decoder: The model.
        artifact_format: A dialect, or `mlx`.
        sample: Asked for the embedding and every other matrix.
    """
    onnx = artifact_format != "mlx"
    # MLX keeps a joined matrix whole, and so do its scales: the bytes are those of the parts.
    layers = [linear for layer in decoder.layers for linear in layer.linears()]
    table = _matrix(decoder.embedding, sample(decoder.embedding), artifact_format)
    if not decoder.tied:
        head, shares = _matrix(decoder.head, sample(decoder.head), artifact_format), False
    elif artifact_format in {"mlx", "onnxruntime"} or not table.bits:
        head, shares = table, True
    else:
        # TensorRT wants rows of int32 words for the one and INT4 columns for the other.
        head, shares = _matrix(decoder.head, sample(decoder.embedding), artifact_format), False
    if onnx and artifact_format != "onnxruntime" and table.bits:
        table = _words(decoder.embedding, sample(decoder.embedding))
    element = 4 if artifact_format == "onnxruntime" else 2
    biases = sum(linear.out_features for linear in layers if linear.bias)
    # TensorRT's norms are FP32; a joined bias fills up with zeros, which are few.
    vectors = sum(decoder.norms().values()) * (4 if onnx else 2) + biases * element
    return Sizes(
        table=table,
        head=head,
        head_shares=shares,
        layers=tuple(_matrix(linear, sample(linear), artifact_format) for linear in layers),
        vectors=vectors,
        rope=_rope_bytes(decoder, artifact_format) if onnx else 0,
    )


def _rope_bytes(decoder: Decoder, dialect: str) -> int:
    ropes = {layer.rope for layer in decoder.layers}
    if dialect == "onnxruntime":
        # One more than the context: see the dialect.
        return sum(2 * 4 * (decoder.max_position + 1) * (decoder.head_dim // 2) for _ in ropes)
    return sum(2 * 2 * decoder.max_position * (rope.dim // 2) for rope in ropes)


def _matrix(linear: Linear, rows: Rows, artifact_format: str) -> StoredMatrix:
    out, inner = linear.out_features, linear.in_features
    element = 4 if artifact_format == "onnxruntime" else 2
    if not isinstance(rows, GroupedTensor):
        return StoredMatrix(weights=out * inner * element)
    groups = inner // rows.group_size
    codes, one_per_group = out * inner * rows.bits // 8, out * groups * element
    if artifact_format == "mlx":
        return StoredMatrix(codes, one_per_group, one_per_group, rows.bits)
    if artifact_format == "onnxruntime":
        kind = offset_kind(rows)
        points = 0 if kind is Offset.SYMMETRIC else out * (-(-groups // 2) if rows.bits == 4 else groups)
        offsets = points + (one_per_group if kind is Offset.FLOAT else 0)
        # A few rows say it of nearly all matrices; a single factor elsewhere can make it otherwise.
        wide = not (fits_half(rows.scales) and (not offsets or fits_half(rows.offsets)))
        return StoredMatrix(codes, one_per_group, offsets, rows.bits, wide)
    planes, centre = int4_planes(rows)
    return StoredMatrix(
        weights=len(planes) * -(-out * inner // 2),
        scales=len(planes) * one_per_group,
        offsets=0 if centre is None else one_per_group,
        bits=rows.bits,
    )


def _words(table: Linear, rows: Rows) -> StoredMatrix:
    """The token table as TensorRT's dialects store it: codes in int32 words."""
    assert isinstance(rows, GroupedTensor)  # noqa: S101  the caller chose by it
    out, inner = table.out_features, table.in_features
    per_group = 2 * out * (inner // rows.group_size)
    offsets = 0 if offset_kind(rows) is Offset.SYMMETRIC else per_group
    return StoredMatrix(out * inner * rows.bits // 8, per_group, offsets, rows.bits)


def sizes_of_files(folder: Path, kind: str, decoder: Decoder) -> Sizes:
    """Read the sizes of an artifact from its files, without its weights.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`.
        decoder: The model; only its names are used.

    Raises:
        BundleError: A file is missing or not what it is called.
    """
    try:
        entries = list(_onnx_entries(folder) if kind == "onnx" else _mlx_entries(folder))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BundleError(f"{folder} holds no artifact that can be measured: {error}") from error
    parts: dict[str, dict[str, int]] = {}
    widths: dict[str, int] = {}
    rope = vectors = 0
    shares = False
    for name, size, bits, again in entries:
        module, part = _split(name)
        if name.startswith(("cos_cache", "sin_cache")):
            rope += size
        elif part is None:
            vectors += size
        else:
            held = parts.setdefault(module, {"weights": 0, "scales": 0, "offsets": 0})
            held[part] += size
            widths[module] = max(widths.get(module, 0), bits)
            shares = shares or again
    wide = _wide(folder) if kind == "onnx" else frozenset()
    matrices = {
        module: StoredMatrix(**held, bits=widths[module], wide=module in wide) for module, held in parts.items()
    }
    table = matrices.pop(decoder.embedding.name, StoredMatrix())
    head = matrices.pop(decoder.head.name, None)
    if head is None or shares:
        # A table that serves as the head too keeps its scales under its own name.
        head, shares = replace(table, bits=0 if head is None else head.bits), True
    return Sizes(table, head, shares, tuple(matrices.values()), vectors, rope)


def _wide(folder: Path) -> frozenset[str]:
    """The matrices whose factors stay float32 in the CPU kernels, as those will find; none where they cannot run it."""
    try:
        model = describe_graph(folder)
    except (BundleError, Unsupported):
        return frozenset()
    return frozenset(
        matrix.name.removesuffix(".weight") for matrix in model.matrices() if is_wide(matrix, model.let_go)
    )


def runner_for(target: Target, dialect: str | None, sizes: Sizes, wanted: str | None = None) -> str:
    """Return which of a target's runners runs an artifact: the CPU kernels know quantized matrices only.

    Args:
        target: The device.
        dialect: Of the artifact.
        sizes: Of the artifact.
        wanted: The runner; None takes the first that can.

    Raises:
        ConfigError: The one that is wanted cannot.
    """
    known = dialect == "onnxruntime" and sizes.quantized
    able = [runner for runner in target.runners if runner != "cpu" or known]
    if wanted is not None and wanted not in able:
        raise ConfigError(f"`{target.name}` has no runner `{wanted[:40]}` for this", hint=f"it has: {', '.join(able)}")
    return wanted or able[0]


_PARTS = {
    "qweight": "weights", "low_qweight": "weights", "scales": "scales", "low_scales": "scales",
    "zero_points": "offsets", "offsets": "offsets", "biases": "offsets", "weight": "weights",
}  # fmt: skip


def _split(name: str) -> tuple[str, str | None]:
    """A tensor's module, and which part of a matrix it is; None for norms, biases and constants."""
    module, _, last = name.rpartition(".")
    part = _PARTS.get(last)
    if part is None or module.endswith("norm"):
        return module, None
    return module.removesuffix(".weight"), part


def _onnx_entries(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    """Name, bytes, bits of its codes (0 if it has none), and whether its bytes are another's too."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    bits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in {"MatMulNBits", "DequantizeLinear"} and len(node.input) > 1:
            stated = {item.name: item.i for item in node.attribute}.get("bits", 4)
            bits |= dict.fromkeys(node.input[1:3], stated) | {node.input[0]: stated}
    seen: set[str] = set()
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        size = int(place["length"]) if "length" in place else len(tensor.raw_data)
        start = place.get("offset", tensor.name)
        yield tensor.name, size, bits.get(tensor.name, 0), start in seen
        seen.add(start)


def _mlx_entries(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise ValueError("there is no model.safetensors")
    for shard in shards:
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                yield name, stop - start, 0, False
