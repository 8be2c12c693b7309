"""Builds a bundle's `config.json`, in Hugging Face's format and the same for every artifact."""

from __future__ import annotations

from edgekit.export.architectures.decoder import Decoder

__all__ = ["hf_config"]


def hf_config(decoder: Decoder, dtype: str) -> dict[str, object]:
    """Return the model's configuration under Hugging Face's keys.

    Args:
        decoder: The model.
        dtype: The artifact's compute dtype, `float16` or `float32`.
    """
    rope = decoder.rope
    scaling = {"rope_type": rope.kind, "type": rope.kind, **rope.scaling} if rope.kind != "default" else None
    nested: dict[str, object] = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    if decoder.model_type == "gemma3_text":
        local = next((layer.rope for layer in decoder.layers if layer.window is not None), rope)
        nested = {
            "full_attention": nested,
            "sliding_attention": {"rope_type": "default", "rope_theta": local.theta},
        }
    return {
        # transformers names classes after the family: `gemma3_text` is Gemma3ForCausalLM.
        "architectures": [f"{decoder.model_type.split('_')[0].capitalize()}ForCausalLM"],
        "model_type": decoder.model_type,
        **decoder.config,
        # In both places: transformers 5 reads the nested value, most mlx-lm models only the top-level one.
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": nested,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": dtype,
    }
