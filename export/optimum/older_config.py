"""Translates a transformers 5 `config.json` to the keys that transformers 4, in Optimum's environment, reads.

transformers 5 keeps everything about RoPE in `rope_parameters`, per kind of layer where they differ. Version 4 ignores
that key, and computes with its defaults. Source: `modeling_rope_utils.py` and the configuration classes of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import ExportError, option
from edgekit.export.architectures.rope import read_rope, same_scaling, scaling_kind

__all__ = ["older_config"]

# Keys of `rope_parameters` that version 4 reads from the top level; gpt_neox has other names for them.
_TOP_LEVEL = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
_RENAMED = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
_PHI4_MINI = {"full_attn_mod", "interpolate_factor"}
# Models of which version 4 reads a second base, for the layers with a sliding window.
_TWO_BASES = {"gemma3_text", "gemma3n_text"}


def older_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration under version 4's keys; one that has them already stays as it is.

    Raises:
        ExportError: Two keys disagree, or version 4 cannot compute such a model.
    """
    older = {key: value for key, value in config.items() if key not in {"rope_parameters", "rope_scaling"}}
    model_type = str(config.get("model_type"))
    scaling, nested = (_object(config, key) for key in ("rope_scaling", "rope_parameters"))
    by_kind = {kind: value for kind, value in nested.items() if isinstance(value, Mapping)}
    if by_kind:
        if len(by_kind) < len(nested):
            raise _unsupported("`rope_parameters` mixes kinds of layers and values")
        nested = _one_rope(by_kind, model_type, older)
    if scaling and scaling_kind(nested) != "default" and not same_scaling(scaling, nested):
        raise ExportError("config.json: `rope_scaling` and `rope_parameters` disagree")
    values = dict(scaling or nested)
    for key, name in (_TOP_LEVEL | _RENAMED.get(model_type, {})).items():
        stated = {source[key] for source in (nested, scaling) if source.get(key) is not None}
        stated |= {older[one] for one in (key, name) if older.get(one) is not None}
        if len(stated) > 1:
            raise ExportError(f"config.json: `{key}` is stated twice, as {' and '.join(map(str, sorted(stated)))}")
        older.pop(key, None)
        if stated:
            older[name] = stated.pop()
        values.pop(key, None)
    _write_scaling(older, values, model_type)
    if older.get("layer_types") is None and older.get("_sliding_window_pattern") is not None:
        older.setdefault("sliding_window_pattern", older["_sliding_window_pattern"])
    older.pop("_sliding_window_pattern", None)
    if model_type == "phi3":
        # Phi-4-mini's own code reads them; 1 turns them off.
        older = {key: value for key, value in older.items() if key not in _PHI4_MINI or value != 1}
    return _without_layer_types(older, model_type)


def _write_scaling(older: dict[str, Any], values: dict[str, Any], model_type: str) -> None:
    """Write `rope_scaling`, and the trained length where version 4 looks for it."""
    kind = scaling_kind(values)
    values = {key: value for key, value in values.items() if value is not None and key not in {"type", "rope_type"}}
    if kind == "default":
        return
    if kind == "yarn" and "attn_factor" in values:
        # Neither version reads it; `read_rope` says what it means.
        rope = read_rope(
            1e4, 2, {"rope_type": kind, **values}, max_position=int(older["max_position_embeddings"]), context_length=1
        )
        values = {**values, "attention_factor": rope.attention_factor}
        del values["attn_factor"]
    original = values.get("original_max_position_embeddings")
    if kind == "longrope" and original is not None:
        if older.setdefault("original_max_position_embeddings", original) != original:
            raise ExportError("config.json: two values of `original_max_position_embeddings` disagree")
        if model_type == "phi3":
            # Version 4 takes exactly the two lists, and derives the factor from the two lengths.
            values = {key: values[key] for key in values.keys() - {"original_max_position_embeddings", "factor"}}
    older["rope_scaling"] = {"type" if model_type == "phi3" else "rope_type": kind, **values}


def _one_rope(by_kind: Mapping[str, Mapping[str, Any]], model_type: str, older: dict[str, Any]) -> Mapping[str, Any]:
    """The RoPE of all layers, or of the full-attention ones where version 4 has a key for the others'."""
    first, *others = by_kind.values()
    if all(dict(other) == dict(first) for other in others):
        return first
    sliding = by_kind.get("sliding_attention", {})
    known = by_kind.keys() == {"full_attention", "sliding_attention"} and scaling_kind(sliding) == "default"
    if model_type not in _TWO_BASES or not known or set(sliding) - {"rope_type", "type", "rope_theta"}:
        raise _unsupported("`rope_parameters` differ by kind of layer")
    base = sliding.get("rope_theta")
    if base is not None and older.setdefault("rope_local_base_freq", base) != base:
        raise ExportError("config.json: `rope_local_base_freq` and `rope_parameters.sliding_attention` disagree")
    return by_kind["full_attention"]


def _without_layer_types(older: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Drop a `layer_types` that says what version 4's Mistral and Phi-3 do: all or no layers have a window."""
    types = older.get("layer_types")
    window = older.get("sliding_window") is not None
    uniform = {"sliding_attention" if window else "full_attention"}
    if model_type in {"mistral", "phi3"} and isinstance(types, list) and set(map(str, types)) == uniform:
        del older["layer_types"]
    return older


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ExportError(f"config.json: `{key}` must be an object, not {str(value)[:40]!r}")
    return value


def _unsupported(why: str) -> ExportError:
    return ExportError(
        f"config.json: {why}, which transformers 4 in Optimum's environment cannot compute for this architecture",
        hint=f"leave out {option('exporter', 'optimum')}, or export another model",
        code="unsupported_configuration",
    )
