"""Reads a `config.json` strictly: every key is used, known to be harmless, or refused.

A key dropped in silence may change what the model computes: mlx-lm once lost `rope_theta` that way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.errors import ExportError, option

__all__ = ["HARMLESS_KEYS", "Config", "unread_key"]

# Keys that do not affect the forward pass: training, bookkeeping, text, and how a library runs the model.
_HARMLESS_KEYS = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id hidden_dropout id2label initializer_range is_decoder is_encoder_decoder
is_llama_config label2id length_penalty max_length min_length name_or_path no_repeat_ngram_size num_beam_groups
num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
pruned_heads quantization quantization_config remove_invalid_values repetition_penalty resid_pdrop return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version
typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
HARMLESS_KEYS = frozenset(_HARMLESS_KEYS.split())
"""Keys that do not affect the forward pass of any model."""


class Config:
    """A configuration that records which of its keys were read.

    Args:
        keys: The contents of `config.json`.
        ignore: Further keys that the user declares harmless.
    """

    def __init__(self, keys: Mapping[str, Any], ignore: Iterable[str] = ()) -> None:
        self._keys = keys
        self._read = {"model_type", *ignore}
        self.normalized: dict[str, Any] = {}
        """The values read, under the same keys and with defaults filled in: a `config.json` of the same model."""

    @property
    def model_type(self) -> str:
        """The architecture's name."""
        return str(self._keys["model_type"])

    def get(self, key: str) -> Any:
        """Return a value of any type, or None, and mark its key as read; it is not added to `normalized`."""
        self._read.add(key)
        return self._keys.get(key)

    def with_value(self, key: str, value: Any) -> Config:
        """Return a copy with another value under one key; keys that were read stay marked."""
        other = Config({**self._keys, key: value})
        other._read = self._read
        other.normalized = self.normalized
        return other

    def integer(self, key: str, default: int | None = None, *, limit: int = 1 << 31) -> int:
        """Return a positive integer.

        Args:
            key: Its key.
            default: What a missing key means.
            limit: Above what any model has; a larger number is refused before anything is allocated by it.

        Raises:
            ExportError: It is missing, not a positive integer, or above the limit.
        """
        value = self._or(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ExportError(f"config.json: `{key}` must be a positive integer, not {str(value)[:60]!r}")
        if value > limit:
            raise ExportError(f"config.json: `{key}` is {str(value)[:60]}, above the limit of {limit}")
        self.normalized[key] = value
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive float.

        Raises:
            ExportError: It is missing or not a positive number.
        """
        value = self._or(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise ExportError(f"config.json: `{key}` must be a positive number, not {str(value)[:60]!r}")
        self.normalized[key] = float(value)
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean.

        Raises:
            ExportError: It is not a boolean.
        """
        value = self._or(key, default)
        if not isinstance(value, bool):
            raise ExportError(f"config.json: `{key}` must be true or false, not {str(value)[:60]!r}")
        self.normalized[key] = value
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a value other than `allowed`; a missing or null key means the first of them.

        Raises:
            ExportError: It has another value.
        """
        value = self._or(key, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise ExportError(
                f"config.json: `{key}: {str(value)[:60]}` is not supported",
                hint=f"supported: {', '.join(str(one) for one in allowed)}",
                code="unsupported_configuration",
            )
        self.normalized[key] = value

    def finish(self) -> None:
        """Refuse keys that were not read.

        Raises:
            ExportError: A key is neither used nor known to be harmless. Null, false, and empty mean "not used".
        """
        unread = [
            key
            for key, value in self._keys.items()
            if key not in self._read and key not in HARMLESS_KEYS and value not in (None, False, [], {}, "")
        ]
        if unread:
            raise unread_key(unread[0], self._keys[unread[0]], f"edgekit reads for `{self.model_type}`")

    def _or(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value


def unread_key(key: str, value: object, reader: str) -> ExportError:
    """Return the error for a key that may change what the model computes and is not read."""
    return ExportError(
        f"config.json: `{key}: {str(value)[:60]}` is not a key that {reader}",
        hint=f"if it does not change what the model computes, use {option('ignore_keys', [key])}",
        code="unsupported_configuration",
    )
