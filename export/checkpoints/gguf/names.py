"""Maps GGUF tensor names to Hugging Face's, per architecture.

Source: `gguf-py/gguf/constants.py` and `convert_hf_to_gguf.py` of ggml-org/llama.cpp. Names of an architecture that is
not listed stay unchanged, and `edgekit.export.architectures` refuses it by name.
"""

from __future__ import annotations

import re

__all__ = ["MODEL_TYPES", "hf_name", "is_rope_table", "stores_norm_plus_one"]

MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Hugging Face's `model_type` where GGUF's `general.architecture` differs."""

_COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_OWN = {
    "qwen3": _HEAD_NORMS,
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "gemma3": {
        **_HEAD_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d{1,4})\.)?(?P<module>\w+)\.(?P<kind>weight|bias)")
# Not weights: the RoPE scaling of each frequency.
_ROPE_TABLES = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}


def hf_name(architecture: str, name: str) -> str:
    """Translate a tensor's name; an unknown one stays unchanged."""
    match = _NAME.fullmatch(name)
    modules = _COMMON | _OWN.get(architecture, {})
    if match is None or match["module"] not in modules:
        return name
    layer = "" if match["layer"] is None else f"model.layers.{int(match['layer'])}."
    return f"{layer}{modules[match['module']]}.{match['kind']}"


def is_rope_table(name: str) -> bool:
    """Whether a GGUF tensor is part of the RoPE scaling and not a weight."""
    return name in _ROPE_TABLES


def stores_norm_plus_one(architecture: str, name: str) -> bool:
    """Whether a tensor, by its Hugging Face name, is a norm to which the converter added one."""
    return architecture == "gemma3" and name.endswith("norm.weight")
