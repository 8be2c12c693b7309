"""Rejects models that mlx-lm cannot compute: its model classes silently ignore configuration keys they do not know.

Source: `mlx_lm/models/{qwen2,qwen3,llama,phi3,gemma3_text,rope_utils}.py` of mlx-lm 0.32.
"""

from __future__ import annotations

from edgekit.errors import ExportError, option
from edgekit.export.architectures.decoder import Decoder

__all__ = ["check_mlx_support"]

# The RoPE scalings that each model class supports.
_SCALINGS = {
    "phi3": ("default", "linear", "longrope"),
    "": ("default", "linear", "llama3", "yarn", "longrope"),
}


def check_mlx_support(decoder: Decoder) -> None:
    """Reject a model that mlx-lm would load but compute wrongly.

    Raises:
        ExportError: Code `unsupported_configuration`.
    """
    _check_windows(decoder)
    rope, kind = decoder.rope, decoder.model_type
    scalings = _SCALINGS.get(kind, _SCALINGS[""])
    if rope.kind not in scalings:
        raise _unsupported(decoder, f"RoPE scaling `{rope.kind}`")
    if rope.scaling.get("truncate") is False:
        raise _unsupported(decoder, "YaRN without `truncate`")
    if rope.kind == "longrope" and "attention_factor" in rope.scaling:
        raise _unsupported(decoder, "LongRoPE's `attention_factor`")
    if kind == "qwen3" and decoder.layers[0].q.bias:
        raise _unsupported(decoder, "`attention_bias`")
    if kind == "phi3" and decoder.head_dim * decoder.num_heads != decoder.hidden_size:
        raise _unsupported(decoder, "a custom `head_dim`")
    if rope.dim != decoder.head_dim and kind != "phi3":
        raise _unsupported(decoder, "`partial_rotary_factor`")


def _check_windows(decoder: Decoder) -> None:
    """Reject sliding windows that mlx-lm ignores; in a context no longer than the window they have no effect."""
    if not decoder.windowed:
        return
    windows = [layer.window for layer in decoder.layers]
    short = min(window for window in windows if window is not None)
    if decoder.model_type == "gemma3_text" and 0 < int(decoder.config["sliding_window_pattern"]) <= len(windows):
        return
    if decoder.model_type == "mistral" and None in windows:
        return
    raise _unsupported(
        decoder,
        f"a sliding window of {short} tokens",
        f"use {option('context_length', short)}, within which the window has no effect",
    )


def _unsupported(decoder: Decoder, what: str, hint: str | None = None) -> ExportError:
    return ExportError(
        f"mlx-lm's `{decoder.model_type}` cannot compute {what}",
        hint=hint or "export it for another target",
        code="unsupported_configuration",
    )
