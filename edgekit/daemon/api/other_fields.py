"""Fields of the OpenAI API and of other servers that edgekit does not have, and when they have no effect.

A client that sends a server's defaults must not be refused. A field that would change the answer is. A field that is
listed nowhere is ignored: see `Strict`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CHAT_INSTEAD", "CHAT_NOOP", "COMPLETION_INSTEAD", "COMPLETION_NOOP", "IGNORED", "RESPONSE_INSTEAD"]

_OPENAI = {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Where and how a server computes the answer, or what it reports besides.
_SERVING = {
    "cache_control",
    "guided_decoding_backend",
    "id_slot",
    "keep_alive",
    "n_discard",
    "n_keep",
    "request_id",
    "return_progress",
    "spaces_between_special_tokens",
    "timings_per_token",
    "ttl",
}
# Settings of what is off here: beam search, mirostat, dynamic temperature, XTC and DRY.
_DEPENDENT = {
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "early_stopping",
    "length_penalty",
    "mirostat_eta",
    "mirostat_tau",
    "xtc_threshold",
}
IGNORED = frozenset(_OPENAI | _SERVING | _DEPENDENT)
"""Fields that never change the answer."""

_NOOP: dict[str, tuple[object, ...]] = {
    # Of other APIs: a body for one of those, sent to the wrong path, would lose its meaning.
    "format": ("",),
    "input": ("", []),
    "instructions": ("",),
    "max_new_tokens": (),
    "max_output_tokens": (),
    "num_predict": (),
    "options": ({}, []),
    "stop_sequences": ([],),
    "system": ("",),
    "think": (),
    # vLLM and SGLang
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": ("",),
    "chat_template_content_format": ("auto", "string"),
    "detokenize": (True,),
    "documents": ([],),
    "ignore_eos": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({}, []),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (True,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "vllm_xargs": ({}, []),
    # llama.cpp
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar_lazy": (False,),
    "image_data": ([],),
    "lora": ([],),
    "min_keep": (0,),
    "mirostat": (0,),
    "n_indent": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "penalize_nl": (True,),
    "post_sampling_probs": (False,),
    "response_fields": ([],),
    "return_tokens": (False,),
    "samplers": ([], ""),
    "t_max_predict_ms": (0, -1),
    "tfs_z": (1,),
    "top_n_sigma": (-1, 0),
    "xtc_probability": (0,),
}
CHAT_NOOP: Mapping[str, tuple[object, ...]] = {
    **_NOOP,
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "modalities": (["text"],),
    "prompt": ("",),
    "suffix": ("",),
    "web_search_options": (),
}
"""Fields of chats that would change the answer, with the values that have no effect."""

COMPLETION_NOOP: Mapping[str, tuple[object, ...]] = {
    **_NOOP,
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (True,),
    "messages": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}
"""The same, of completions."""

_INSTEAD = {
    "format": "use `response_format`",
    "max_new_tokens": "use `max_tokens`",
    "max_output_tokens": "use `max_tokens`",
    "num_predict": "use `max_tokens`",
    "options": "send its fields beside the others, not in `options`",
    "stop_sequences": "use `stop`",
}
CHAT_INSTEAD: Mapping[str, str] = {
    **_INSTEAD,
    "input": "a chat takes `messages`; `/v1/responses` takes `input`",
    "instructions": "send a message with the role `system`",
    "n_probs": "use `logprobs` and `top_logprobs`",
    "prompt": "a chat takes `messages`; `/v1/completions` takes a `prompt`",
    "suffix": "`/v1/completions` takes a `suffix`",
    "system": "send a message with the role `system`",
    "think": "use `enable_thinking`",
}
"""What to send in place of fields of chats that are rejected."""

COMPLETION_INSTEAD: Mapping[str, str] = {
    **_INSTEAD,
    "input": "use `prompt`",
    "messages": "a completion takes a `prompt`; `/v1/chat/completions` takes `messages`",
    "n_probs": "`/v1/completions` has `logprobs`",
    "prompt_logprobs": "`/v1/completions` has `echo` and `logprobs`",
    "tools": "`/v1/chat/completions` takes `tools`",
}
"""The same, of completions."""

RESPONSE_INSTEAD: Mapping[str, str] = {
    **_INSTEAD,
    "format": "use `text.format`",
    "messages": "use `input`",
    "n_probs": "use `top_logprobs`",
    "prompt": "use `input` and `instructions`",
    "system": "use `instructions`",
    "think": "use `reasoning.effort`",
}
"""The same, of the Responses API."""
