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
    rope = decoder.rope
    scaling = {"rope_type": rope.kind, "type": rope.kind, **rope.scaling} if rope.kind != "default" else None
    nested: dict[str, object] = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    if decoder.model_type == "gemma3_text":
        local = next((one.rope for one in decoder.layers if one.window is not None), rope)
        nested = {
            "full_attention": nested,
            "sliding_attention": {"rope_type": "default", "rope_theta": local.theta},
        }
    return {
        # transformers names a class after the family: `gemma3_text` is Gemma3ForCausalLM.
        "architectures": [f"{decoder.model_type.split('_')[0].capitalize()}ForCausalLM"],
        "model_type": decoder.model_type,
        **decoder.config,
        # Both places: transformers 5 reads the nested one, most of mlx-lm's models only the top level.
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": nested,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": dtype,
    }
