"""Translates GGUF metadata to the keys of Hugging Face's `config.json`.

A key that changes what the model computes is translated or refused, never dropped. Source of the keys: ggml's
`docs/gguf.md` and llama.cpp's `llama-arch.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.checkpoints.gguf.names import MODEL_TYPES

__all__ = ["hf_config"]

# Keys (under the architecture's prefix) of computations that edgekit does not support, with the values that turn
# them off.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}


def hf_config(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_tables: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> dict[str, Any]:
    """Translate GGUF metadata.

    Args:
        metadata: The file's key-value pairs.
        shapes: The tensors' shapes by Hugging Face name.
        rope_tables: The RoPE scaling tensors, by GGUF's name.

    Raises:
        ExportError: A value is missing or of the wrong type, or needs a computation that edgekit does not support.
    """
    return _Translation(metadata, shapes, rope_tables or {}).config()


class _Translation:
    def __init__(
        self,
        metadata: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        tables: Mapping[str, npt.NDArray[np.float32]],
    ) -> None:
        self._metadata = metadata
        self._shapes = shapes
        self._tables = tables
        self._arch = str(metadata.get("general.architecture", ""))

    def config(self) -> dict[str, Any]:
        if not re.fullmatch(r"[\w.-]{1,64}", self._arch):
            raise ExportError("the GGUF file does not state its architecture", hint="is it an adapter and not a model?")
        self._refuse()
        hidden, heads = self._integer("embedding_length"), self._integer("attention.head_count")
        embedding = self._shapes.get("model.embed_tokens.weight")
        if embedding is None or len(embedding) != 2:
            raise ExportError("the GGUF file has no token embedding", hint="is it a language model?")
        config: dict[str, Any] = {
            "model_type": MODEL_TYPES.get(self._arch, self._arch),
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self._integer("feed_forward_length"),
            "num_hidden_layers": self._integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer("attention.head_count_kv", heads),
            "max_position_embeddings": self._integer("context_length"),
            "rms_norm_eps": self._decimal("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._decimal("rope.freq_base", 10_000.0),
            "vocab_size": embedding[0],
            "tie_word_embeddings": "lm_head.weight" not in self._shapes,
        }
        head_dim = self._head_dim(hidden, heads)
        config |= head_dim
        config |= self._rope_scaling()
        config |= self._token_ids()
        config |= self._windows()
        width = max(1, head_dim.get("head_dim", hidden // heads))
        if self._arch == "llama":
            config["attention_bias"] = any(name.endswith("_proj.bias") and "self_attn" in name for name in self._shapes)
            config["mlp_bias"] = any(name.endswith("_proj.bias") and ".mlp." in name for name in self._shapes)
        elif self._arch == "phi3":
            config |= self._phi3(width)
        elif self._arch == "gemma3":
            config |= self._gemma3(width, hidden, heads)
            del config["hidden_act"]
        return config

    def _phi3(self, width: int) -> dict[str, Any]:
        """LongRoPE's factors are tensors, and RoPE may rotate only part of a head."""
        found: dict[str, Any] = {}
        rotated = self._optional(f"{self._arch}.rope.dimension_count", int)
        if rotated not in (None, width):
            found["partial_rotary_factor"] = rotated / width
        original = self._optional(f"{self._arch}.rope.scaling.original_context_length", int)
        if original is not None:
            found["original_max_position_embeddings"] = original
        tables = [self._tables.get(f"rope_factors_{kind}.weight") for kind in ("short", "long")]
        short, long = tables
        if short is not None and long is not None:
            found["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": [float(x) for x in short.ravel()[:1024]],
                "long_factor": [float(x) for x in long.ravel()[:1024]],
                "attention_factor": self._optional(f"{self._arch}.rope.scaling.attn_factor", float),
            }
        return found

    def _gemma3(self, width: int, hidden: int, heads: int) -> dict[str, Any]:
        """Values that llama.cpp's code sets and the file does not state (`llama-model.cpp`, `gemma3.cpp`)."""
        largest = self._integer("block_count") == 62
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": hidden // heads if largest else width,
            "rope_local_base_freq": self._decimal("rope.freq_base_swa", 10_000.0),
            "sliding_window_pattern": self._integer("attention.sliding_window_pattern", 6),
        }

    def _windows(self) -> dict[str, Any]:
        """The sliding window; one as long as the context has no effect."""
        window = self._optional(f"{self._arch}.attention.sliding_window", int)
        if self._arch in {"phi3", "gemma3"}:
            return {} if window in (None, 0) else {"sliding_window": window}
        if window not in (None, 0) and window < self._integer("context_length"):
            raise ExportError(
                f"the GGUF file asks for `attention.sliding_window: {window}`, which edgekit does not support",
                hint="export the model from its safetensors, which state the layers with the window",
                code="unsupported_configuration",
            )
        return {}

    def _refuse(self) -> None:
        for key, harmless in _REFUSED.items():
            value = self._metadata.get(f"{self._arch}.{key}")
            if value is not None and (isinstance(value, np.ndarray) or value not in harmless):
                raise ExportError(
                    f"the GGUF file asks for `{key}: {str(value)[:40]}`, which edgekit does not support",
                    code="unsupported_configuration",
                )

    def _head_dim(self, hidden: int, heads: int) -> dict[str, int]:
        given = self._optional(f"{self._arch}.attention.key_length", int)
        size = hidden // heads if given is None else given
        # Phi-4-mini rotates only part of each head.
        keys = ("attention.value_length", *(() if self._arch == "phi3" else ("rope.dimension_count",)))
        for key in keys:
            other = self._optional(f"{self._arch}.{key}", int)
            if other not in (None, size):
                raise ExportError(
                    f"the GGUF file's heads are {size} wide, but its `{key}` is {other}",
                    hint="heads of two widths, and RoPE over part of a head, are not supported",
                    code="unsupported_configuration",
                )
        return {} if given is None else {"head_dim": size}

    def _rope_scaling(self) -> dict[str, Any]:
        """`rope_scaling` as far as the file states it; the architecture decides whether it is supported."""
        if self._arch == "phi3":
            return {}
        factors = self._tables.get("rope_freqs.weight")
        kind = self._optional(f"{self._arch}.rope.scaling.type", str) or "none"
        factor = self._optional(f"{self._arch}.rope.scaling.factor", float)
        if factor is None:
            factor = self._optional(f"{self._arch}.rope.scale_linear", float)
        if factors is not None and not np.all(factors == 1):
            # Converters write Llama 3's scaling as one factor per frequency and name no type.
            return {"rope_scaling": {"rope_type": "llama3", "factors": [float(x) for x in factors.ravel()[:1024]]}}
        attention = self._optional(f"{self._arch}.rope.scaling.attn_factor", float)
        stated = {} if attention in (None, 0.0, 1.0) else {"attn_factor": self._decimal("rope.scaling.attn_factor")}
        if kind == "none" and factor in (None, 0.0, 1.0):
            return {"rope_scaling": stated} if stated else {}
        scaling: dict[str, Any] = {"rope_type": "linear" if kind == "none" else kind, "factor": factor, **stated}
        for key in ("beta_fast", "beta_slow"):
            if self._optional(f"{self._arch}.rope.scaling.yarn_{key}", float) is not None:
                scaling[key] = self._decimal(f"rope.scaling.yarn_{key}")
        original = self._optional(f"{self._arch}.rope.scaling.original_context_length", int)
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return {"rope_scaling": scaling}

    def _token_ids(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for key, hf_key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
            value = self._optional(f"tokenizer.ggml.{key}_token_id", int)
            if value is not None:
                found[hf_key] = value
        return found

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._optional(f"{self._arch}.{key}", int)
        value = default if value is None else value
        if value is None or not 0 < value < 1 << 31:
            raise ExportError(f"the GGUF file's `{self._arch}.{key}` is {value}, not a positive integer")
        return value

    def _decimal(self, key: str, default: float | None = None) -> float:
        """A float32 as the shortest decimal that rounds to it, which is the number its author wrote (1e-05)."""
        value = self._optional(f"{self._arch}.{key}", float)
        value = default if value is None else value
        if value is None or not 0 < value < 1e30:
            raise ExportError(f"the GGUF file's `{self._arch}.{key}` is {value}, not a positive number")
        return float(str(np.float32(value)))

    def _optional(self, key: str, kind: type) -> Any:
        value = self._metadata.get(key)
        fits = isinstance(value, (int, float) if kind is float else kind) and not (
            isinstance(value, bool) and kind is not bool
        )
        if value is None or fits:
            return value
        raise ExportError(
            f"the GGUF file's `{key}` has the wrong type", hint="values that differ by layer are not supported"
        )
