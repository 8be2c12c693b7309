"""Rotary position embedding and its scalings: which angle each pair of elements turns by.

Half-split ("rotate half") layout over the first `dim` elements of a head. Element i pairs with element i + dim/2 and
turns by `position * frequencies[i]`; cosine and sine are multiplied by `attention_factor`. It knows no tensor.

Sources: Su et al. 2021, arXiv:2104.09864; linear interpolation, Chen et al. 2023, arXiv:2306.15595; YaRN, Peng et al.
2023, arXiv:2309.00071; LongRoPE, Ding et al. 2024, arXiv:2402.13753; Llama 3.1's scaling and the names of all keys:
`transformers/modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError

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
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor",
        "short_mscale", "long_mscale",
    },
}  # fmt: skip
# Older names of the same thing.
_ALIASES = {"su": "longrope", "none": "default"}
# Not the scaling's own: transformers 5 puts them beside its keys.
_BESIDE = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding.

    Attributes:
        theta: The base.
        dim: Elements of a head that are turned, from the first on; the others stay.
        frequencies: Radians per position of each pair, `dim / 2` of them.
        attention_factor: Multiplies cosine and sine.
        kind: `default`, `linear`, `llama3`, `yarn` or `longrope`.
        scaling: The scaling under Hugging Face's keys; empty for `default`.
        trained: Positions it was trained for before scaling; None where the configuration does not say.
    """

    theta: float
    dim: int
    frequencies: tuple[float, ...]
    attention_factor: float = 1.0
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trained: int | None = None


def read_rope(
    theta: float, dim: int, scaling: Mapping[str, Any] | None, *, max_position: int, context_length: int
) -> Rope:
    """Compute a rotary embedding from what a configuration says of it.

    Args:
        theta: The base.
        dim: Elements of a head that are turned; even.
        scaling: `rope_scaling` or `rope_parameters`; None for none.
        max_position: `max_position_embeddings`.
        context_length: Longest sequence the export is for. LongRoPE has two sets of factors and takes the short ones
            where this does not exceed the trained length.

    Raises:
        ExportError: The kind of scaling is unknown, or a key of it is unknown, missing or out of range.
    """
    own = _own(scaling)
    kind = known_kind(scaling)
    try:
        with np.errstate(all="ignore"):
            plain = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
            if kind == "default":
                rope = Rope(theta, dim, _tuple(plain))
            elif kind == "linear":
                factor = _number(own, "factor")
                rope = Rope(theta, dim, _tuple(plain / factor), 1.0, kind, {"factor": factor}, max_position)
            elif kind == "llama3":
                rope = _llama3(theta, dim, plain, own)
            elif kind == "yarn":
                rope = _yarn(theta, dim, plain, own, max_position)
            else:
                rope = _longrope(theta, plain, own, max_position, context_length)
        sound = bool(np.isfinite([*rope.frequencies, rope.attention_factor]).all())
    except (ArithmeticError, ValueError):
        sound = False
    if not sound:
        raise ExportError(f"config.json: RoPE scaling `{kind}` with theta {theta:g} makes no finite frequencies")
    return rope


def scaling_kind(scaling: Mapping[str, Any] | None) -> str:
    """The name of a scaling, `default` for none.

    Raises:
        ExportError: It is no object, or has two names.
    """
    if not isinstance(scaling, Mapping | None):
        raise ExportError(f"config.json: RoPE scaling must be an object, not {str(scaling)[:40]!r}")
    stated = [str(name) for name in ((scaling or {}).get(key) for key in ("rope_type", "type")) if name]
    names = {_ALIASES.get(name, name[:40]) for name in stated}
    if len(names) > 1:
        raise ExportError(f"config.json: RoPE scaling is both `{stated[0][:40]}` and `{stated[1][:40]}`")
    return names.pop() if names else "default"


def known_kind(scaling: Mapping[str, Any] | None) -> str:
    """The name of a scaling whose kind and keys are all handled.

    Raises:
        ExportError: One is not.
    """
    own, kind = _own(scaling), scaling_kind(scaling)
    if kind not in _KEYS:
        raise ExportError(
            f"config.json: RoPE scaling `{kind}` is not supported",
            hint=f"supported: {', '.join(_KEYS)}",
            code="unsupported_configuration",
        )
    strange = sorted(own.keys() - _KEYS[kind])
    if strange:
        raise ExportError(
            f"config.json: RoPE scaling `{kind}` has a key that is not handled: `{strange[0]}`",
            hint=f"handled: {', '.join(sorted(_KEYS[kind]))}",
            code="unsupported_configuration",
        )
    return kind


def same_scaling(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two scalings say the same, whichever of their keys' names they use."""
    return scaling_kind(one) == scaling_kind(other) and _own(one) == _own(other)


def full_scaling(scaling: Any, nested: Any) -> Any:
    """Of a configuration's `rope_scaling` and `rope_parameters`, what scales the layers that see all tokens.

    transformers 5 nests one for each kind of layer where they differ.
    """
    if not scaling and isinstance(nested, Mapping):
        return nested.get("full_attention", nested)
    return scaling or nested


def scaled_context(scaling: Mapping[str, Any] | None, max_position: int) -> int:
    """The longest sequence that a scaling makes of `max_position_embeddings`.

    Qwen2.5's model card adds YaRN and leaves `max_position_embeddings` at the trained length, so the product of the
    trained length and the factor counts where it is larger.
    """
    if scaling_kind(scaling) != "yarn":
        return max_position
    own = dict(scaling or {})
    original = _count(own, "original_max_position_embeddings", max_position)
    return max(max_position, int(original * _number(own, "factor")))


def with_yarn(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Add YaRN to a configuration that has no scaling, as Qwen2.5's model card describes it.

    Args:
        config: A `config.json`.
        factor: Times the trained length; 4 makes 128K of 32K.

    Raises:
        ExportError: There is a scaling already, or the factor is not between 1 and 64.
    """
    if not 1 < factor <= 64:
        raise ExportError(f"a YaRN factor is more than 1 and at most 64, not {factor:g}")
    nested = config.get("rope_parameters")
    for scaling in (config.get("rope_scaling"), nested, full_scaling(None, nested)):
        if scaling_kind(scaling) != "default":
            raise ExportError(
                f"config.json asks for RoPE scaling `{scaling_kind(scaling)}` already", hint="leave out --yarn"
            )
    original = config.get("max_position_embeddings")
    added = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}

    def stretched(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**{key: value for key, value in (scaling or {}).items() if key != "type"}, **added}

    changed = {key: value for key, value in config.items() if key != "rope_scaling"}
    if not isinstance(nested, Mapping):
        return {**changed, "rope_scaling": stretched(config.get("rope_scaling"))}
    if "full_attention" in nested:
        return {**changed, "rope_parameters": {**nested, "full_attention": stretched(nested["full_attention"])}}
    return {**changed, "rope_parameters": stretched({**(config.get("rope_scaling") or {}), **nested})}


def _llama3(theta: float, dim: int, plain: Frequencies, own: Mapping[str, Any]) -> Rope:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    if "factors" in own:  # GGUF holds what came out, one number per pair
        own = _llama3_of(np.asarray(own["factors"], np.float64), plain)
    factor, original = _number(own, "factor"), _count(own, "original_max_position_embeddings")
    low, high = _number(own, "low_freq_factor"), _number(own, "high_freq_factor")
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
    turns = original * plain / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    scaled: Frequencies = plain * ((1 - blend) / factor + blend)
    return scaled


def _llama3_of(factors: Frequencies, plain: Frequencies) -> dict[str, Any]:
    """Find the scaling that a GGUF file's factors came from: Meta has published two.

    The files hold float32, and what multiplies a wavelength.
    """
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


def _yarn(theta: float, dim: int, plain: Frequencies, own: Mapping[str, Any], max_position: int) -> Rope:
    """Pairs that turn often are kept, those that turn seldom are interpolated, with a linear ramp between."""
    factor = _number(own, "factor")
    original = _count(own, "original_max_position_embeddings", max_position)
    fast, slow = _number(own, "beta_fast", 32.0), _number(own, "beta_slow", 1.0)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(fast), pair_that_turns(slow)
    if own.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high > low else 0.001), 0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = (own.get(key) for key in ("mscale", "mscale_all_dim"))
    usual = (
        magnitude(_number(own, "mscale")) / magnitude(_number(own, "mscale_all_dim"))
        if mscale and all_dim
        else magnitude(1.0)
    )
    attention = _number(own, "attention_factor", usual)
    scaling: dict[str, Any] = {"factor": factor, "original_max_position_embeddings": original}
    if (fast, slow) != (32.0, 1.0):
        scaling |= {"beta_fast": fast, "beta_slow": slow}
    if attention != magnitude(1.0):
        # transformers reads the first; mlx-lm knows only the second, which gives the same number.
        scaling |= {"attention_factor": attention, "mscale": (attention - 1.0) / (0.1 * math.log(factor))}
    if not own.get("truncate", True):
        scaling["truncate"] = False
    return Rope(theta, dim, _tuple(frequencies), attention, "yarn", scaling, original)


def _longrope(theta: float, plain: Frequencies, own: Mapping[str, Any], max_position: int, context: int) -> Rope:
    """One factor per pair; two sets, for sequences within the trained length and for longer ones."""
    original = _count(own, "original_max_position_embeddings", max_position)
    factors, dim = {}, 2 * plain.size
    for key in ("short_factor", "long_factor"):
        values = own.get(key)
        if not isinstance(values, list) or len(values) != dim // 2 or not all(_positive(value) for value in values):
            raise ExportError(f"config.json: RoPE scaling `longrope` needs {dim // 2} positive numbers as `{key}`")
        factors[key] = [float(value) for value in values]
    stretch = max_position / original
    usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    for key in ("short_mscale", "long_mscale"):
        if key in own and not math.isclose(_number(own, key), usual, rel_tol=1e-6):
            raise ExportError(
                f"config.json: RoPE scaling `longrope` with `{key}: {own[key]}` is not supported",
                code="unsupported_configuration",
            )
    # transformers 4 overrides this factor by the ratio of the two lengths, transformers 5 the ratio by the factor.
    if "attention_factor" not in own and not math.isclose(_number(own, "factor", stretch), stretch, rel_tol=1e-6):
        raise ExportError(
            f"config.json: RoPE scaling `longrope` has the factor {own['factor']:g}, and the lengths {max_position} "
            f"and {original}, which make {stretch:g}",
            hint="state `attention_factor` there, which settles it",
            code="unsupported_configuration",
        )
    attention = _number(own, "attention_factor", usual)
    chosen = factors["long_factor" if context > original else "short_factor"]
    scaling = {**factors, "original_max_position_embeddings": original}
    if math.isclose(attention, usual, rel_tol=1e-6):
        attention = usual
    else:
        scaling["attention_factor"] = attention
    return Rope(theta, dim, _tuple(plain / np.asarray(chosen)), attention, "longrope", scaling, original)


def _own(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The scaling's own keys."""
    return {key: value for key, value in (scaling or {}).items() if value is not None and key not in _BESIDE}


def _tuple(frequencies: Frequencies) -> tuple[float, ...]:
    return tuple(float(value) for value in frequencies)


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf


def _number(own: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = own.get(key, default)
    if not _positive(value):
        raise ExportError(f"config.json: RoPE scaling needs a positive number as `{key}`, not {value!r}")
    return float(value)


def _count(own: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = own.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ExportError(f"config.json: RoPE scaling needs a positive integer as `{key}`, not {value!r}")
    return value
