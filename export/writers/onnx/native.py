"""The `native` dialect: opset 24, one operator for each of RMSNorm, RoPE, cache and attention, for TensorRT 10.15 on.

Besides what `edgekit.export.writers.onnx.tensorrt` says of both dialects:

    write_indices    int64 [batch]                 where in the cache the new rows go
    past_key_values.N.key, .value   fp16 [batch, kv_heads, capacity, head_dim]
        ▼
    present.N.key, .value           the same shape, bound to the same address

with total <= capacity: the new rows are written into the cache where it lies, and attention reads its first `total`
positions. `capacity` is open in the file, so that a device may choose it by its memory; TensorRT wants it to be a
number before it parses the graph (`edgekit.export.tensorrt_build` puts it in).

What TensorRT's parser asks of these operators (10.15 and 10.16; TensorRT-RTX 1.7 answers alike): RoPE's positions in
INT64; attention over four dimensions, without past, softcap or a stated softmax precision; queries that are scaled
before they enter. Where no fused kernel exists, a builder must also let each attention be decomposed, which ONNX
cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekit.export.architectures.decoder import Layer, Rope
from edgekit.export.writers.onnx.tensorrt import INT64, TensorRtDialect

__all__ = ["Native"]


class Native(TensorRtDialect):
    """Writes one model into one graph of fused operators; arguments as for `TensorRtDialect`."""

    opsets: ClassVar[Mapping[str, int]] = {"": 24}

    _angles: Mapping[Rope, tuple[str, str]]
    _positions: str
    _total: str

    def _declare_cache(self) -> None:
        self._g.input("write_indices", INT64, ("batch",))
        shape = ("batch", self._d.num_kv_heads, "capacity", self._d.head_dim)
        for layer in self._d.layers:
            for part in ("key", "value"):
                self._g.input(f"past_key_values.{layer.index}.{part}", self._type, shape)
                self._g.output(f"present.{layer.index}.{part}", self._type, shape)

    def _begin(self, positions: str, masks: list[str]) -> None:
        self._positions = positions
        self._angles = self._tables()
        self._total = self._g.node("Shape", masks[:1], "/model/total/Shape", start=3, end=4)

    def _norm(self, x: str, weight: str, path: str) -> str:
        scale = self._norm_weight(weight)
        return self._g.node("RMSNormalization", [x, scale], f"{path}/RMSNormalization", epsilon=self._d.rms_norm_eps)

    # q ─ heads ─ RoPE ─ Mul scale ────────────────────────────────────────────────────┐
    # k ─ heads ─ RoPE ─ TensorScatter past_key ─┬─ Slice first total ───────────────┐ │
    #                                            └─▶ present.key                     Attention ─▶ o_proj
    # v ─ heads ──────── TensorScatter past_value ─┬─ Slice first total ─────────────┘ │
    #                                              └─▶ present.value              mask ┘
    def _attention(self, layer: Layer, x: str, path: str) -> str:
        query = self._heads(x, layer.q, layer.q_norm, f"{path}/q_proj")
        query = self._rope(query, layer.rope, f"{path}/q_rotary")
        query = self._g.node("Mul", [query, self._scale()], f"{path}/scale/Mul")
        key = self._heads(x, layer.k, layer.k_norm, f"{path}/k_proj")
        key = self._cached(self._rope(key, layer.rope, f"{path}/k_rotary"), f"{layer.index}.key", f"{path}/key")
        value = self._cached(self._heads(x, layer.v, None, f"{path}/v_proj"), f"{layer.index}.value", f"{path}/value")
        mixed = self._g.node("Attention", [query, key, value, self._mask_of(layer)], f"{path}/Attention", scale=1.0)
        return self._join(mixed, path)

    def _rope(self, x: str, rope: Rope, path: str) -> str:
        # 0 turns whole heads.
        turned = 0 if rope.dim == self._d.head_dim else rope.dim
        return self._g.node(
            "RotaryEmbedding",
            [x, *self._angles[rope], self._positions],
            f"{path}/RotaryEmbedding",
            rotary_embedding_dim=turned,
        )

    def _cached(self, rows: str, name: str, path: str) -> str:
        """Write new rows into the cache and return its first `total` positions."""
        inputs = [f"past_key_values.{name}", rows, "write_indices"]
        whole = self._g.node("TensorScatter", inputs, f"{path}/TensorScatter", output=f"present.{name}", axis=2)
        span = [self._int64("index.0", [0]), self._total, self._int64("axis.2", [2])]
        return self._g.node("Slice", [whole, *span], f"{path}/Slice")
