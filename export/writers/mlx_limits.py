"""What mlx-lm's model classes cannot compute, refused by name: they drop what they do not know without a word.

Source: `mlx_lm/models/{qwen2,qwen3,llama,phi3,gemma3_text,rope_utils}.py` of mlx-lm 0.32. It writes nothing.
"""

from __future__ import annotations

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder

__all__ = ["refuse_what_mlx_lacks"]

# Scalings of RoPE that each model class reads.
_SCALINGS = {
    "phi3": ("default", "linear", "longrope"),
    "": ("default", "linear", "llama3", "yarn", "longrope"),
}


def refuse_what_mlx_lacks(decoder: Decoder) -> None:
    """Refuse a model that mlx-lm would load and compute otherwise.

    Raises:
        ExportError: Code `unsupported_configuration`, with what to do where something can be done.
    """
    _refuse_windows(decoder)
    rope, kind = decoder.rope, decoder.model_type
    scalings = _SCALINGS.get(kind, _SCALINGS[""])
    if rope.kind not in scalings:
        raise _lacks(decoder, f"RoPE scaling `{rope.kind}`")
    if rope.scaling.get("truncate") is False:
        raise _lacks(decoder, "YaRN without `truncate`")
    if rope.kind == "longrope" and "attention_factor" in rope.scaling:
        raise _lacks(decoder, "an `attention_factor` of LongRoPE")
    if kind == "qwen3" and decoder.layers[0].q.bias:
        raise _lacks(decoder, "`attention_bias`")
    if kind == "phi3" and decoder.head_dim * decoder.num_heads != decoder.hidden_size:
        raise _lacks(decoder, "a `head_dim` of its own")
    if rope.dim != decoder.head_dim and kind != "phi3":
        raise _lacks(decoder, "`partial_rotary_factor`")


def _refuse_windows(decoder: Decoder) -> None:
    """Every layer of a short context sees all of it, window or not."""
    if not decoder.windowed:
        return
    windows = [layer.window for layer in decoder.layers]
    short = min(window for window in windows if window is not None)
    if decoder.model_type == "gemma3_text" and 0 < int(decoder.config["sliding_window_pattern"]) <= len(windows):
        return
    if decoder.model_type == "mistral" and None in windows:
        return
    raise _lacks(
        decoder, f"a sliding window of {short} tokens", f"--context {short}: within the window nothing is left out"
    )


def _lacks(decoder: Decoder, what: str, hint: str | None = None) -> ExportError:
    return ExportError(
        f"mlx-lm's `{decoder.model_type}` cannot compute {what}",
        hint=hint or "export it for another target",
        code="unsupported_configuration",
    )
