"""The `config.json` of a bundle: what Hugging Face's own would say of the model, the same for every artifact."""

from __future__ import annotations

from edgekit.export.architectures.decoder import Decoder

__all__ = ["hf_config"]


def hf_config(decoder: Decoder, dtype: str) -> dict[str, object]:
    """Return the model's facts under Hugging Face's keys.

    Args:
        decoder: The model.
        dtype: What the artifact computes in, `float16` or `float32`.
    """
    layer = decoder.layers[0]
    return {
        # transformers names a class after the family: `gemma3_text` is Gemma3ForCausalLM.
        "architectures": [f"{decoder.model_type.split('_')[0].capitalize()}ForCausalLM"],
        "model_type": decoder.model_type,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": decoder.max_position,
        "rms_norm_eps": decoder.rms_norm_eps,
        # Both places: transformers 5 reads the nested one, mlx-lm's models only the top level.
        "rope_theta": decoder.rope.theta,
        "rope_parameters": {"rope_theta": decoder.rope.theta, "rope_type": "default"},
        "tie_word_embeddings": decoder.tied,
        "attention_bias": layer.q.bias,
        "mlp_bias": layer.gate.bias,
        "torch_dtype": dtype,
    }
