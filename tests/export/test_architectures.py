"""Every architecture against transformers, and configurations read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import architectures, describe
from edgekit.export.architectures.rope import with_yarn
from tests.models import tiny_checkpoint, tiny_tensors
from tests.oracle import transformers_logits
from tests.reference import forward
from tests.variants import VARIANTS, variant

TOKENS = [int(token) for token in np.random.default_rng(11).integers(0, 500, 150)]
# transformers 4.57 reads RoPE from the top level of config.json only.
NESTED = {"llama-nested-rope"}


def configuration(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def test_the_variants_cover_every_architecture() -> None:
    assert {str(options["model_type"]) for options in VARIANTS.values()} == set(architectures())


@pytest.mark.optimum
@pytest.mark.parametrize("count", [40, 150])
@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - NESTED))
def test_the_reference_computes_what_transformers_computes(name: str, count: int, tmp_path: Path) -> None:
    folder = variant(name, tmp_path)
    # LongRoPE has one set of factors for sequences within the trained 64 tokens and one for longer ones.
    decoder = describe(configuration(folder), context_length=count)
    ours = forward(decoder, tiny_tensors(folder).__getitem__, TOKENS[:count])
    theirs = transformers_logits(folder, TOKENS[:count])
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(theirs).max() > 2


def test_rope_nested_as_transformers_5_writes_it_is_the_same_as_at_the_top(tmp_path: Path) -> None:
    nested = configuration(variant("llama-nested-rope", tmp_path / "nested"))
    top = configuration(variant("llama3", tmp_path / "top", rope_theta=70_000.0))
    assert describe(nested) == describe(top)


def test_gemma_as_transformers_5_writes_it_is_the_same_as_before(tmp_path: Path) -> None:
    old = configuration(variant("gemma3_text", tmp_path))
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {
        "full_attention": {"rope_theta": old["rope_theta"], **old["rope_scaling"]},
        "sliding_attention": {"rope_theta": old["rope_local_base_freq"], "rope_type": "default"},
    }
    assert describe(new) == describe(old)


def test_every_key_is_used_or_harmless_or_refused(tmp_path: Path) -> None:
    for name in VARIANTS:
        config = configuration(variant(name, tmp_path / name))
        describe(config | {"transformers_version": "5.0", "use_cache": True, "unknown_but_off": False})
        with pytest.raises(ExportError, match=r"`residual_multiplier: 0\.22` is not a key") as caught:
            describe(config | {"residual_multiplier": 0.22})
        assert caught.value.hint is not None
        assert "`ignore_keys=['residual_multiplier']`" in caught.value.hint
        describe(config | {"residual_multiplier": 0.22}, ignore=["residual_multiplier"])


def test_what_phi_4_mini_states_is_read_and_other_values_are_refused(tmp_path: Path) -> None:
    config = configuration(variant("phi3-partial", tmp_path))
    assert describe(config | {"full_attn_mod": 1, "interpolate_factor": 1}) == describe(config)
    for key in ("full_attn_mod", "interpolate_factor"):
        with pytest.raises(ExportError, match=f"`{key}: 2` is not supported"):
            describe(config | {key: 2})


def test_the_attention_factor_of_deepseek_r1_qwen3_multiplies_the_default_one(tmp_path: Path) -> None:
    config = configuration(variant("qwen3", tmp_path))
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    published = describe(config | {"rope_scaling": {**scaling, "attn_factor": 0.8782488562869419}}).rope
    # 1 / (0.1 ln 4 + 1): the two cancel out.
    assert published.attention_factor == pytest.approx(1.0, abs=1e-12)
    assert published.frequencies == describe(config | {"rope_scaling": scaling}).rope.frequencies
    for more in ({"attention_factor": 1.0}, {"rope_type": "llama3"}):
        with pytest.raises(ExportError, match="attn_factor"):
            describe(config | {"rope_scaling": {**scaling, "attn_factor": 0.8, **more}})


def test_a_context_beyond_the_models_is_refused_and_yarn_extends_it(tmp_path: Path) -> None:
    config = configuration(tiny_checkpoint(tmp_path))
    with pytest.raises(ExportError, match="context is 256 tokens") as caught:
        describe(config, context_length=1024)
    assert "`yarn`" in str(caught.value.hint)
    decoder = describe(with_yarn(config, 4.0), context_length=1024)
    assert (decoder.max_position, decoder.rope.kind) == (1024, "yarn")
    assert describe(with_yarn(config, 4.0)).max_position == 1024
    with pytest.raises(ExportError, match="already"):
        with_yarn(with_yarn(config, 4.0), 2.0)
    with pytest.raises(ExportError, match="more than 1"):
        with_yarn(config, 1.0)


def test_yarn_of_qwen_2_5_has_the_published_numbers() -> None:
    # The fastest pairs keep their frequency, the slowest rotate a quarter as fast; arXiv:2309.00071, eq. 22.
    config = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }  # fmt: skip
    decoder = describe(config)
    assert decoder.max_position == 131_072
    assert decoder.rope.attention_factor == pytest.approx(0.1 * np.log(4.0) + 1)
    plain = 1e6 ** (-np.arange(0, 128, 2) / 128)
    ratio = np.array(decoder.rope.frequencies) / plain
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 0).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000, above the limit of 4096"),
        ({"head_dim": 1 << 20}, "`head_dim` is 1048576"),
        ({"hidden_size": 10**400}, "`hidden_size` is 1000"),
        ({"rope_theta": 10**400}, "`rope_theta` must be a positive number"),
        ({"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "infinite or NaN"),
        (
            {"rope_theta": 1e-300, "rope_scaling": {"rope_type": "linear", "factor": 1e-300}},
            "infinite or NaN",
        ),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_anything_is_allocated_by_them(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((variant("llama", tmp_path / "model") / "config.json").read_text())
    with pytest.raises(ExportError, match=message):
        describe(config | keys)


_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def test_a_base_inside_the_scaling_counts_as_it_does_for_transformers_5(tmp_path: Path) -> None:
    config = configuration(variant("llama3", tmp_path))
    inside = config | {"rope_theta": None, "rope_scaling": {**_LLAMA3, "rope_theta": 70_000.0}}
    assert describe(inside).rope == describe(config | {"rope_theta": 70_000.0}).rope


def test_the_trained_length_that_phi3_keeps_at_the_top_counts_for_every_scaling(tmp_path: Path) -> None:
    config = configuration(variant("phi3", tmp_path))
    yarn = {"rope_type": "yarn", "factor": 4.0}
    top = describe(config | {"original_max_position_embeddings": 64, "rope_scaling": yarn})
    inside = describe(config | {"rope_scaling": {**yarn, "original_max_position_embeddings": 64}})
    assert top.rope == inside.rope
    assert top.rope.original_max_position == 64


def test_the_older_bases_count_where_transformers_5_nests_nothing_else_for_gemma(tmp_path: Path) -> None:
    old = configuration(variant("gemma3_text", tmp_path)) | {"rope_scaling": None, "rope_local_base_freq": 20_000.0}
    kinds: dict[str, Any] = {"full_attention": {"rope_type": "default"}, "sliding_attention": None}
    assert describe(old | {"rope_parameters": kinds}) == describe(old)


@pytest.mark.parametrize("nested", [None, {"rope_type": "default"}, "kinds"])
def test_yarn_reaches_the_full_attention_layers_however_rope_is_written(nested: Any, tmp_path: Path) -> None:
    name = "gemma3_text" if nested == "kinds" else "llama"
    config = configuration(variant(name, tmp_path)) | {"rope_scaling": {"type": "default"}}
    if nested == "kinds":
        nested = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    decoder = describe(with_yarn(config | {"rope_parameters": nested}, 4.0))
    assert (decoder.rope.kind, decoder.max_position) == ("yarn", 1024)
    kinds = {layer.rope.kind for layer in decoder.layers}
    assert kinds == ({"yarn", "default"} if name == "gemma3_text" else {"yarn"})


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("llama", {"rope_scaling": {**_LLAMA3, "rope_theta": 1e6}}, "`rope_theta` and `rope_scaling.rope_theta` disag"),
        ("llama", {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "both `yarn` and `linear`"),
        (
            "llama",
            {"rope_scaling": _LLAMA3, "rope_parameters": {"mrope_section": [1]}},
            "unsupported key `mrope_s",
        ),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "64 of 32 elements"),
        ("phi3-longrope", {"original_max_position_embeddings": 128}, None),
        ("phi3-longrope", {"rope_scaling.original_max_position_embeddings": 128}, "disagree"),
        ("phi3-longrope", {"rope_scaling.factor": 8.0}, "the factor 8, but the lengths 256 and 64 give 4"),
        ("phi3-longrope", {"rope_scaling.factor": 8.0, "rope_scaling.attention_factor": 1.2}, None),
        ("phi3-longrope", {"rope_scaling.factor": 4.0}, None),
        ("gemma3_text", {"rope_parameters": {"full_attention": {}}}, "`rope_scaling` and `rope_parameters.full_attent"),
        ("gemma3_text", {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 3.0}}}, "disagree"),
        ("gemma3_text", {"rope_parameters": {"full_attention": {}, "chunked": {}}}, "`rope_parameters.chunked` is not"),
        ("gemma3_text", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is not supported"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "sliding layers, but `use_sliding_window` is false"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "`layer_types` must name one of"),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, None),
        ("mistral", {"layer_types": ["sliding_attention"] * 3}, "sliding layers, but `sliding_window` is missing"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_is_dropped(
    name: str, keys: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    config = configuration(variant(name, tmp_path))
    for key, value in keys.items():
        outer, _, inner = key.partition(".")
        config[outer] = {**config[outer], inner: value} if inner else value
    if message is None:
        describe(config)
        return
    with pytest.raises(ExportError, match=message):
        describe(config)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_number_beyond_all_measure_is_refused_wherever_it_stands(name: str, tmp_path: Path) -> None:
    config = json.loads((variant(name, tmp_path) / "config.json").read_text())
    scaling = config.get("rope_scaling") or {}
    for value in (10**400, -(10**400), 10**30, float("inf"), float("nan"), 1e308):
        changes = [{**config, key: value} for key, stated in config.items() if isinstance(stated, int | float)]
        changes += [{**config, "rope_scaling": {**scaling, key: value}} for key in scaling if key != "rope_type"]
        yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
        changes += [{**config, "rope_scaling": {**yarn, key: value}} for key in yarn if key != "rope_type"]
        messages = [message for changed in changes if (message := refusal(changed))]
        assert messages
        assert max(map(len, messages)) < 300


def refusal(config: dict[str, Any]) -> str | None:
    try:
        describe(config)
    except ExportError as error:  # any other exception fails the test
        return error.message
    return None
