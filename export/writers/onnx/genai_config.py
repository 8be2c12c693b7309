"""Writes the `genai_config.json` that lets onnxruntime-genai open a bundle.

Source of the keys: onnxruntime-genai's src/config.h and src/config.cpp (0.18).
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.tokenizer_files import read_tokenizer
from edgekit.export.writers.onnx.genai import GENAI_FILE

__all__ = ["write_genai_config"]

# genai allocates and zeroes the KV cache for all of `max_length` at once. Users can raise it up to the context length.
_MAX_LENGTH = 4096


def write_genai_config(folder: Path, decoder: Decoder, tokenizer: TokenizerFiles) -> None:
    """Write `genai_config.json` next to its graph.

    Args:
        folder: The bundle's folder.
        decoder: The model.
        tokenizer: The checkpoint's tokenizer files.
    """
    config = genai_config(decoder, tokenizer)
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def genai_config(decoder: Decoder, tokenizer: TokenizerFiles) -> dict[str, object]:
    """Return the configuration."""
    ends = list(tokenizer.eos_token_ids)
    vocabulary = read_tokenizer(tokenizer.tokenizer_json)

    def token(name: str, default: int) -> int:
        token_id = vocabulary.token_to_id(tokenizer.special.get(name, ""))
        return default if token_id is None else int(token_id)

    # For `phi3` genai assumes a RoPE that changes at token 4097, where it recomputes the cache; that of our graph does
    # not change. `decoder` is its name for a generic model.
    kind = "decoder" if decoder.model_type == "phi3" else decoder.model_type
    return {
        "model": {
            "type": kind,
            "context_length": decoder.max_position,
            "vocab_size": decoder.vocab_size,
            "bos_token_id": token("bos_token", ends[0]),
            "eos_token_id": ends,
            "pad_token_id": token("pad_token", ends[0]),
            "decoder": {
                "filename": GENAI_FILE,
                "hidden_size": decoder.hidden_size,
                "head_size": decoder.head_dim,
                "num_attention_heads": decoder.num_heads,
                "num_key_value_heads": decoder.num_kv_heads,
                "num_hidden_layers": len(decoder.layers),
                "session_options": {"provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(decoder.max_position, _MAX_LENGTH),
            "num_beams": 1,
            "past_present_share_buffer": True,
        },
    }
