"""Matches norms and attention of the `native` dialect.

The counterpart of `edgekit.export.writers.onnx.native`, which writes and draws the patterns.
"""

from __future__ import annotations

from typing import ClassVar

from edgekit.runners.cpu.model import FloatArray
from edgekit.runners.cpu.onnx_reader.match_layers import Sizes
from edgekit.runners.cpu.onnx_reader.match_tensorrt import Attention, Heads, TensorRtLayers
from edgekit.runners.cpu.onnx_reader.matcher import integer, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_proto import INT64, NodeProto, ValueInfo

__all__ = ["NativeLayers"]


class NativeLayers(TensorRtLayers):
    """Matches layers of fused operators; arguments as for `TensorRtLayers`."""

    opsets: ClassVar[dict[str, int]] = {"": 24}
    total: ClassVar[str] = "capacity"

    def _more_inputs(self) -> list[ValueInfo]:
        return [ValueInfo("write_indices", INT64, ("batch",))]

    def _cache_shapes(self, sizes: Sizes) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
        shape = ("batch", sizes.kv_heads, "capacity", sizes.head_dim)
        return shape, shape

    def _rms(self, value: str, width: int) -> tuple[str, FloatArray, float, NodeProto]:
        node = self._matcher.match(value, "RMSNormalization", {"epsilon": float}, inputs=(2,))
        eps = node.attributes["epsilon"]
        if not isinstance(eps, float):
            raise unsupported(node, "has no epsilon")
        return node.inputs[0], self._weights(node, node.inputs[1], width), eps, node

    # q ─ heads ─ RoPE ─ Mul scale ──────────────┐
    # k ─ heads ─ RoPE ─ TensorScatter past_key ─┤
    # v ─ heads ─────── TensorScatter past_value ┤
    #                                       mask ┴─ Attention ─▶
    def _attention(self, mixed: str, index: int) -> Attention:
        # Queries are scaled already.
        node = self._matcher.match(mixed, "Attention", {"scale": 1.0}, inputs=(4,))
        query, key, value, mask = node.inputs
        query, scale = self._scaled(query)
        q, tables = self._rope(query)
        k, other = self._rope(self._cached(key, f"{index}.key"))
        v = self._heads(self._cached(value, f"{index}.value"))
        if tables != other:
            raise unsupported(node, "has queries and keys with different RoPE tables")
        return Attention(q, k, v, scale, mask, tables)

    def _rope(self, value: str) -> tuple[Heads, tuple[str, str]]:
        node = self._matcher.match(value, "RotaryEmbedding", {"rotary_embedding_dim": int}, inputs=(4,))
        x, cos, sin, positions = node.inputs
        heads, dim = self._heads(x), integer(node, "rotary_embedding_dim")
        # 0 rotates full heads.
        if positions != "position_ids" or not 0 <= dim < heads.dim or dim % 2:
            raise unsupported(node, f"rotates {dim} elements of a head, by `{positions[:80]}`")
        for table in (cos, sin):
            self._check_table(node, table, (dim or heads.dim) // 2)
        return heads, (cos, sin)

    def _cached(self, value: str, name: str) -> str:
        """Match the new rows of the cache; return them."""
        node = self._matcher.match(value, "TensorScatter", {"axis": 2}, inputs=(3,))
        past, rows, at = node.inputs
        if (past, at, value) != (f"past_key_values.{name}", "write_indices", f"present.{name}"):
            raise unsupported(node, f"does not use the cache of layer {name}")
        return rows
