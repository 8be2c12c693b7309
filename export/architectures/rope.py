"""Rotary position embedding (RoPE) and its scalings: the frequency at which each pair of elements rotates.

Half-split ("rotate half") layout over the first `dim` elements of a head. Element i pairs with element i + dim/2; the
pair is rotated by `position * frequencies[i]`, with cosine and sine multiplied by `attention_factor`.

Sources: Su et al. 2021, arXiv:2104.09864; linear interpolation, Chen et al. 2023, arXiv:2306.15595; YaRN, Peng et al.
2023, arXiv:2309.00071; LongRoPE, Ding et al. 2024, arXiv:2402.13753; Llama 3.1's scaling and the names of all keys:
`transformers/modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError, option, spelled

__all__ = [
    "Rope",
    "full_scaling",
    "known_kind",
    "read_rope",
    "same_scaling",
    "scaled_context",
    "scaling_kind",
    "with_yarn",
]

Frequencies = npt.NDArray[np.float64]

# Keys that each kind of scaling may have, besides the kind itself.
_KEYS = {
    "default": {"factor"},
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "factors"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor",
        "short_mscale", "long_mscale",
    },
}  # fmt: skip
_MAX_LENGTH = 1 << 31
# Older names of the same kind.
_ALIASES = {"su": "longrope", "none": "default"}
# Not keys of the scaling: transformers 5 stores them beside these.
_NOT_SCALING = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding.

    Attributes:
        theta: The base.
        dim: Leading elements of a head that are rotated; the others pass through.
        frequencies: Radians per position of each pair, `dim / 2` of them.
        attention_factor: Multiplies cosine and sine.
        kind: `default`, `linear`, `llama3`, `yarn` or `longrope`.
        scaling: The scaling under Hugging Face's keys; empty for `default`.
        original_max_position: Trained length before scaling; None if the configuration does not state it.
    """

    theta: float
    dim: int
    frequencies: tuple[float, ...]
    attention_factor: float = 1.0
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    original_max_position: int | None = None


def read_rope(
    theta: float, dim: int, scaling: Mapping[str, Any] | None, *, max_position: int, context_length: int
) -> Rope:
    """Compute a rotary embedding from its configuration.

    Args:
        theta: The base.
        dim: Elements of a head that are rotated; even.
        scaling: `rope_scaling` or `rope_parameters`; None for none.
        max_position: `max_position_embeddings`.
        context_length: Longest sequence to export for. LongRoPE has two sets of factors and uses the short ones up to
            the trained length.

    Raises:
        ExportError: The kind of scaling is unknown, or one of its keys is unknown, missing or out of range.
    """
    params = _scaling_params(scaling)
    kind = known_kind(scaling)
    try:
        with np.errstate(all="ignore"):
            plain = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
            if kind == "default":
                rope = Rope(theta, dim, _tuple(plain))
            elif kind == "linear":
                factor = _number(params, "factor")
                rope = Rope(theta, dim, _tuple(plain / factor), 1.0, kind, {"factor": factor}, max_position)
            elif kind == "llama3":
                rope = _llama3(theta, dim, plain, params)
            elif kind == "yarn":
                rope = _yarn(theta, dim, plain, params, max_position)
            else:
                rope = _longrope(theta, plain, params, max_position, context_length)
        finite = bool(np.isfinite([*rope.frequencies, rope.attention_factor]).all())
    except (ArithmeticError, ValueError):
        finite = False
    if not finite:
        raise ExportError(
            f"config.json: RoPE scaling `{kind}` with theta {spelled(theta)} gives infinite or NaN frequencies"
        )
    return rope


def scaling_kind(scaling: Mapping[str, Any] | None) -> str:
    """The kind of a scaling, `default` for None.

    Raises:
        ExportError: It is not an object, or states two kinds.
    """
    if not isinstance(scaling, Mapping | None):
        raise ExportError(f"config.json: RoPE scaling must be an object, not {str(scaling)[:40]!r}")
    stated = [str(name) for name in ((scaling or {}).get(key) for key in ("rope_type", "type")) if name]
    names = {_ALIASES.get(name, name[:40]) for name in stated}
    if len(names) > 1:
        raise ExportError(f"config.json: RoPE scaling is both `{stated[0][:40]}` and `{stated[1][:40]}`")
    return names.pop() if names else "default"


def known_kind(scaling: Mapping[str, Any] | None) -> str:
    """The kind of a scaling, checked: its kind and all of its keys are supported.

    Raises:
        ExportError: One is not.
    """
    params, kind = _scaling_params(scaling), scaling_kind(scaling)
    if kind not in _KEYS:
        raise ExportError(
            f"config.json: RoPE scaling `{kind}` is not supported",
            hint=f"supported: {', '.join(_KEYS)}",
            code="unsupported_configuration",
        )
    unknown = sorted(params.keys() - _KEYS[kind])
    if unknown:
        raise ExportError(
            f"config.json: RoPE scaling `{kind}` has the unsupported key `{unknown[0]}`",
            hint=f"supported: {', '.join(sorted(_KEYS[kind]))}",
            code="unsupported_configuration",
        )
    return kind


def same_scaling(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two scalings are the same, whichever key names they use."""
    return scaling_kind(one) == scaling_kind(other) and _scaling_params(one) == _scaling_params(other)


def full_scaling(scaling: Any, nested: Any) -> Any:
    """The scaling of the full-attention layers, from `rope_scaling` and `rope_parameters`.

    transformers 5 nests one per kind of layer where they differ.
    """
    if not scaling and isinstance(nested, Mapping):
        return nested.get("full_attention", nested)
    return scaling or nested


def scaled_context(scaling: Mapping[str, Any] | None, max_position: int) -> int:
    """The longest sequence with a scaling applied to `max_position_embeddings`.

    Qwen2.5's model card adds YaRN and leaves `max_position_embeddings` at the trained length, so the product of the
    trained length and the factor counts if it is larger.
    """
    if scaling_kind(scaling) != "yarn":
        return max_position
    params = dict(scaling or {})
    length = _count(params, "original_max_position_embeddings", max_position) * _number(params, "factor")
    if not length <= _MAX_LENGTH:
        raise ExportError(f"config.json: RoPE scaling to {length:.3g} tokens is above the limit of {_MAX_LENGTH}")
    return max(max_position, int(length))


def with_yarn(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Add YaRN to a configuration that has no scaling, as Qwen2.5's model card describes it.

    Args:
        config: A `config.json`.
        factor: Times the trained length; 4 extends 32K to 128K.

    Raises:
        ExportError: There is a scaling already, or the factor is not between 1 and 64.
    """
    if not 1 < factor <= 64:
        raise ExportError(f"a YaRN factor must be more than 1 and at most 64, not {spelled(factor)}")
    nested = config.get("rope_parameters")
    for scaling in (config.get("rope_scaling"), nested, full_scaling(None, nested)):
        if scaling_kind(scaling) != "default":
            raise ExportError(
                f"config.json already has RoPE scaling `{scaling_kind(scaling)}`", hint=f"leave out {option('yarn')}"
            )
    original = config.get("max_position_embeddings")
    added = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}

    def extended(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**{key: value for key, value in (scaling or {}).items() if key != "type"}, **added}

    changed = {key: value for key, value in config.items() if key != "rope_scaling"}
    if not isinstance(nested, Mapping):
        return {**changed, "rope_scaling": extended(config.get("rope_scaling"))}
    if "full_attention" in nested:
        return {**changed, "rope_parameters": {**nested, "full_attention": extended(nested["full_attention"])}}
    return {**changed, "rope_parameters": extended({**(config.get("rope_scaling") or {}), **nested})}


def _llama3(theta: float, dim: int, plain: Frequencies, params: Mapping[str, Any]) -> Rope:
    """Long wavelengths are multiplied by the factor, short ones kept, those between interpolated."""
    if "factors" in params:  # GGUF stores the resulting factor of each pair's wavelength
        params = _llama3_from_factors(np.asarray(params["factors"], np.float64), plain)
    factor, original = _number(params, "factor"), _count(params, "original_max_position_embeddings")
    low, high = _number(params, "low_freq_factor"), _number(params, "high_freq_factor")
    if not low < high:
        raise ExportError("config.json: RoPE scaling `llama3` needs low_freq_factor below high_freq_factor")
    scaling = {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    return Rope(
        theta, dim, _tuple(_llama3_scaled(plain, factor, low, high, original)), 1.0, "llama3", scaling, original
    )


def _llama3_scaled(plain: Frequencies, factor: float, low: float, high: float, original: int) -> Frequencies:
    rotations = original * plain / (2 * math.pi)
    blend = np.clip((rotations - low) / (high - low), 0, 1)
    scaled: Frequencies = plain * ((1 - blend) / factor + blend)
    return scaled


def _llama3_from_factors(factors: Frequencies, plain: Frequencies) -> dict[str, Any]:
    """Find the scaling that a GGUF file's float32 wavelength factors came from: Meta has published two."""
    for factor in (8.0, 32.0):
        if factors.shape == plain.shape and np.allclose(
            plain / _llama3_scaled(plain, factor, 1.0, 4.0, 8192), factors, rtol=1e-4
        ):
            return {
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
    raise ExportError(
        "the RoPE factors of this GGUF file are not those of Llama 3.1 or 3.2",
        hint="export the original safetensors checkpoint",
        code="unsupported_configuration",
    )


def _yarn(theta: float, dim: int, plain: Frequencies, params: Mapping[str, Any], max_position: int) -> Rope:
    """Fast pairs keep their frequency, slow ones are interpolated, with a linear ramp between."""
    factor = _number(params, "factor")
    original = _count(params, "original_max_position_embeddings", max_position)
    fast, slow = _number(params, "beta_fast", 32.0), _number(params, "beta_slow", 1.0)

    def correction_dim(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction_dim(fast), correction_dim(slow)
    if params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high > low else 0.001), 0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = (params.get(key) for key in ("mscale", "mscale_all_dim"))
    default_factor = (
        magnitude(_number(params, "mscale")) / magnitude(_number(params, "mscale_all_dim"))
        if mscale and all_dim
        else magnitude(1.0)
    )
    if "attn_factor" in params:
        # DeepSeek-R1-0528-Qwen3-8B's, which vLLM and SGLang multiply by the default and transformers passes over.
        if "attention_factor" in params:
            raise ExportError("config.json: RoPE scaling `yarn` has both `attention_factor` and `attn_factor`")
        default_factor *= _number(params, "attn_factor")
    attention = _number(params, "attention_factor", default_factor)
    scaling: dict[str, Any] = {"factor": factor, "original_max_position_embeddings": original}
    if (fast, slow) != (32.0, 1.0):
        scaling |= {"beta_fast": fast, "beta_slow": slow}
    if attention != magnitude(1.0):
        # transformers reads the first key; mlx-lm only the second, which gives the same number.
        scaling |= {"attention_factor": attention, "mscale": (attention - 1.0) / (0.1 * math.log(factor))}
    if not params.get("truncate", True):
        scaling["truncate"] = False
    return Rope(theta, dim, _tuple(frequencies), attention, "yarn", scaling, original)


def _longrope(theta: float, plain: Frequencies, params: Mapping[str, Any], max_position: int, context: int) -> Rope:
    """One factor per pair; two sets, for sequences within the trained length and for longer ones."""
    original = _count(params, "original_max_position_embeddings", max_position)
    factors, dim = {}, 2 * plain.size
    for key in ("short_factor", "long_factor"):
        values = params.get(key)
        if not isinstance(values, list) or len(values) != dim // 2 or not all(_positive(value) for value in values):
            raise ExportError(f"config.json: `{key}` of RoPE scaling `longrope` must be {dim // 2} positive numbers")
        factors[key] = [float(value) for value in values]
    stretch = max_position / original
    default_factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    for key in ("short_mscale", "long_mscale"):
        if key in params and not math.isclose(_number(params, key), default_factor, rel_tol=1e-6):
            raise ExportError(
                f"config.json: RoPE scaling `longrope` with `{key}: {params[key]}` is not supported",
                code="unsupported_configuration",
            )
    # transformers 4 overrides this factor by the ratio of the two lengths, transformers 5 the ratio by the factor.
    if "attention_factor" not in params and not math.isclose(_number(params, "factor", stretch), stretch, rel_tol=1e-6):
        raise ExportError(
            f"config.json: RoPE scaling `longrope` has the factor {params['factor']:g}, but the lengths {max_position} "
            f"and {original} give {stretch:g}",
            hint="add `attention_factor` to the scaling, which takes precedence",
            code="unsupported_configuration",
        )
    attention = _number(params, "attention_factor", default_factor)
    chosen = factors["long_factor" if context > original else "short_factor"]
    scaling = {**factors, "original_max_position_embeddings": original}
    if math.isclose(attention, default_factor, rel_tol=1e-6):
        attention = default_factor
    else:
        scaling["attention_factor"] = attention
    return Rope(theta, dim, _tuple(plain / np.asarray(chosen)), attention, "longrope", scaling, original)


def _scaling_params(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The scaling's own keys."""
    return {key: value for key, value in (scaling or {}).items() if value is not None and key not in _NOT_SCALING}


def _tuple(frequencies: Frequencies) -> tuple[float, ...]:
    return tuple(float(value) for value in frequencies)


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value <= sys.float_info.max


def _number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = params.get(key, default)
    if not _positive(value):
        raise ExportError(
            f"config.json: `{key}` of the RoPE scaling must be a positive number, not {str(value)[:60]!r}"
        )
    return float(value)


def _count(params: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_LENGTH:
        raise ExportError(
            f"config.json: `{key}` of the RoPE scaling must be a positive integer below {_MAX_LENGTH}, "
            f"not {str(value)[:60]}"
        )
    return value
