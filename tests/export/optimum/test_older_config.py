"""Configurations of transformers 5, translated for the transformers 4 in Optimum's environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.optimum.older_config import older_config
from tests.models import tiny_tensors
from tests.oracle import transformers_checkpoint, transformers_logits
from tests.reference import forward
from tests.variants import VARIANTS, variant

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 60)]
_SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "intermediate_size": 192,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {**_SIZES, "rope_theta": 50_000.0}
# Architectures that edgekit does not describe, with a rotary embedding that is not the default.
OTHERS: dict[str, dict[str, Any]] = {
    "cohere": _ROPE,
    "gemma": {**_ROPE, "head_dim": 32},
    "gemma2": {**_ROPE, "head_dim": 32, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "glm": {**_ROPE, "head_dim": 32, "partial_rotary_factor": 0.25},
    "gpt_neox": {**_SIZES, "rotary_emb_base": 50_000, "rotary_pct": 0.5},
    "granite": {**_ROPE, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "olmo2": _ROPE,
    "phi": {**_ROPE, "num_key_value_heads": 4, "partial_rotary_factor": 0.25},
    "smollm3": _ROPE,
    "stablelm": {**_ROPE, "partial_rotary_factor": 0.5},
}


def as_transformers_5_writes_it(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` that transformers 5 saves for a model after reading this one."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    written = transformers.CONFIG_MAPPING[config["model_type"]](**config).to_json_string()
    newer: dict[str, Any] = json.loads(written)
    assert newer["rope_parameters"]
    # It keeps what it does not know, such as another tool's names for the same values.
    return {key: value for key, value in newer.items() if key not in {"rope_theta", "partial_rotary_factor"}}


def read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.optimum
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_transformers_4_computes_from_the_translation_what_edgekit_computes_from_the_original(
    name: str, tmp_path: Path
) -> None:
    newer = as_transformers_5_writes_it(read(variant(name, tmp_path)))
    ours = forward(describe(newer, context_length=60), tiny_tensors(tmp_path).__getitem__, TOKENS)
    (tmp_path / "config.json").write_text(json.dumps(older_config(newer)))
    np.testing.assert_allclose(transformers_logits(tmp_path, TOKENS), ours, atol=1e-3)
    assert describe(older_config(newer)) == describe(newer)


@pytest.mark.optimum
@pytest.mark.parametrize("name", OTHERS)
def test_a_model_saved_again_by_transformers_5_computes_the_same(name: str, tmp_path: Path) -> None:
    source = transformers_checkpoint(tmp_path / "old", name, OTHERS[name])
    expected = transformers_logits(source, TOKENS)
    shutil.copytree(source, tmp_path / "new")
    newer = older_config(as_transformers_5_writes_it(read(source)))
    (tmp_path / "new" / "config.json").write_text(json.dumps(newer))
    np.testing.assert_allclose(transformers_logits(tmp_path / "new", TOKENS), expected, atol=1e-5)


def test_what_phi_4_mini_states_is_left_out_where_it_has_no_effect() -> None:
    config = {"model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 2}
    assert older_config(config) == {"model_type": "phi3", "interpolate_factor": 2}


@pytest.mark.optimum
def test_the_attention_factor_that_transformers_passes_over_is_handed_to_it(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attn_factor": 0.5}
    config = read(variant("qwen3", tmp_path, rope_scaling=scaling))
    ours = forward(describe(config, context_length=60), tiny_tensors(tmp_path).__getitem__, TOKENS)
    (tmp_path / "config.json").write_text(json.dumps(older_config(config)))
    np.testing.assert_allclose(transformers_logits(tmp_path, TOKENS), ours, atol=1e-3)


def test_a_configuration_that_transformers_4_wrote_stays_as_it_is() -> None:
    config = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert older_config(config) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "`rope_theta` is stated twice"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}, "rope_theta": 1e4},
            "stated twice",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "`rope_scaling` and `rope_parameters` disagree",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "rope_theta": 1e6}}, "mixes kinds of layers"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
            "differ by kind of layer",
        ),
        ({"rope_parameters": "yarn"}, "`rope_parameters` must be an object"),
    ],
)
def test_what_transformers_4_cannot_be_told_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        older_config({"model_type": "llama", **config})
