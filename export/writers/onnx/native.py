"""The `native` dialect: opset 24, one operator each for RMSNorm, RoPE, cache and attention, for TensorRT 10.15 and up.

In addition to the inputs and outputs in `edgekit.export.writers.onnx.tensorrt`:

    write_indices    int64 [batch]                 the cache position of the first new row
    past_key_values.N.key, .value   fp16 [batch, kv_heads, capacity, head_dim]
        ▼
    present.N.key, .value           the same shape, bound to the same address

with total = capacity: new rows are written into the cache in place, attention reads all of it, and the masks hide what
is not used. (A slice of the first positions would be copied in every step.) `capacity` is symbolic in the file, so that
a device can choose it according to its memory; TensorRT requires a number before it parses the graph
(`edgekit.runners.tensorrt.segments` sets it).

Requirements of TensorRT's parser (10.15 and 10.16; TensorRT-RTX 1.7 has the same): RoPE positions in INT64;
four-dimensional attention without past, softcap or an explicit softmax precision; queries scaled beforehand. If no
fused kernel exists, the builder must also allow each attention to be decomposed, which ONNX cannot express.
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
    total: ClassVar[str] = "capacity"

    _angles: Mapping[Rope, tuple[str, str]]
    _positions: str

    def _declare_cache(self) -> None:
        self._g.input("write_indices", INT64, ("batch",))
        shape = ("batch", self._d.num_kv_heads, "capacity", self._d.head_dim)
        for layer in self._d.layers:
            for part in ("key", "value"):
                self._g.input(f"past_key_values.{layer.index}.{part}", self._type, shape)
                self._g.output(f"present.{layer.index}.{part}", self._type, shape)

    def _begin(self, positions: str, masks: list[str]) -> None:  # noqa: ARG002
        self._positions = positions
        self._angles = self._tables()

    def _norm(self, x: str, weight: str, path: str) -> str:
        scale = self._norm_weight(weight)
        return self._g.node("RMSNormalization", [x, scale], f"{path}/RMSNormalization", epsilon=self._d.rms_norm_eps)

    # q ─ heads ─ RoPE ─ Mul scale ────────────────────────────────────────────────────┐
    # k ─ heads ─ RoPE ─ TensorScatter past_key ─┬────────────────────────────────────┐ │
    #                                            └─▶ present.key                     Attention ─▶ o_proj
    # v ─ heads ──────── TensorScatter past_value ─┬─────────────────────────────────┘ │
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
        # 0 rotates full heads.
        rotary_dim = 0 if rope.dim == self._d.head_dim else rope.dim
        return self._g.node(
            "RotaryEmbedding",
            [x, *self._angles[rope], self._positions],
            f"{path}/RotaryEmbedding",
            rotary_embedding_dim=rotary_dim,
        )

    def _cached(self, rows: str, name: str, path: str) -> str:
        """Write new rows into the cache and return it."""
        inputs = [f"past_key_values.{name}", rows, "write_indices"]
        return self._g.node("TensorScatter", inputs, f"{path}/TensorScatter", output=f"present.{name}", axis=2)
