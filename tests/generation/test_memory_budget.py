from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bundle.shapes import model_shapes
from edgekit.cores import usable_cores
from edgekit.generation.memory_budget import (
    LoadedModel,
    draft_kv_bytes,
    grammar_bytes,
    kv_budget,
    max_tokens_with_draft,
)
from edgekit.memory import RUNTIMES, Shapes
from edgekit.runners.base import Limits

MIB = 1 << 20
LIMITS = Limits(context_length=4096, sequence_slots=4, max_chunk=512, vocab_size=1000, kv_bytes_per_token=40_000)
CAPACITY = 4 * 4096 * 40_000
SHAPES = Shapes(hidden=576, intermediate=1536, heads=9, vocab=1000)
MODEL = LoadedModel(LIMITS, "onnxruntime", SHAPES)
DRAFT = LoadedModel(replace(LIMITS, kv_bytes_per_token=10_000), "onnxruntime", Shapes(128, 384, 4, 1000))


def test_with_enough_memory_the_budget_is_the_slots_capacity() -> None:
    assert kv_budget([MODEL], 1 << 40) == CAPACITY
    assert kv_budget([MODEL], None) == CAPACITY


def test_a_reserve_and_the_activations_of_a_step_are_subtracted_from_the_available_memory() -> None:
    step = RUNTIMES["onnxruntime"].activations(SHAPES)
    assert kv_budget([MODEL], 400 * MIB) == int(400 * MIB * 0.9) - step


def test_the_budget_always_fits_a_short_chat() -> None:
    assert kv_budget([MODEL], 0) == 512 * 40_000


def test_a_draft_models_cache_and_activations_count_too() -> None:
    assert kv_budget([MODEL, DRAFT], None) == CAPACITY + CAPACITY // 4
    step = sum(RUNTIMES["onnxruntime"].activations(shapes) for shapes in (SHAPES, Shapes(128, 384, 4, 1000)))
    assert kv_budget([MODEL, DRAFT], 400 * MIB) == int(400 * MIB * 0.9) - step
    assert kv_budget([MODEL, DRAFT], 0) == 512 * 50_000


@pytest.mark.parametrize("context", [100, 1000, 4096])
@pytest.mark.parametrize("budget", [100 * 40_000, 10 * MIB, 300 * MIB, CAPACITY + CAPACITY // 4])
@pytest.mark.parametrize("draft_max", [1, 8, 64])
def test_both_models_kv_cache_fits_the_budget_and_one_more_token_does_not(
    context: int, budget: int, draft_max: int
) -> None:
    draft = replace(DRAFT.limits, context_length=context)
    tokens = max_tokens_with_draft(budget, LIMITS, draft, draft_max)
    assert tokens * 40_000 + draft_kv_bytes(tokens, draft, draft_max) <= budget or tokens == 0
    more = tokens + 1
    assert more * 40_000 + draft_kv_bytes(more, draft, draft_max) > budget


def test_shapes_come_from_the_bundles_configuration(tmp_path: Path) -> None:
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shapes(tmp_path) == SHAPES
    (tmp_path / "config.json").write_text("{}")
    assert model_shapes(tmp_path) is None


@pytest.mark.parametrize("size", [-1, (1 << 31) + 1, True, 1.0, "1", None])
@pytest.mark.parametrize("name", ["hidden_size", "vocab_size"])
def test_a_configuration_with_what_is_no_size_has_no_shapes(tmp_path: Path, name: str, size: object) -> None:
    config: dict[str, object] = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    config["vocab_size"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(config | {name: size}))
    assert model_shapes(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 1 << 31}))
    assert model_shapes(tmp_path) is not None


def test_shapes_have_the_sizes_of_grouped_attention_if_the_configuration_does(tmp_path: Path) -> None:
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3, "head_dim": 64}))
    assert model_shapes(tmp_path) == replace(SHAPES, kv_heads=3, head_dim=64)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": None, "head_dim": None}))
    assert model_shapes(tmp_path) == SHAPES
    assert model_shapes(tmp_path / "missing") is None


def test_activations_are_those_of_a_step_over_the_whole_context() -> None:
    for runtime, figures in RUNTIMES.items():
        per_token = figures.activations_per_token(SHAPES, usable_cores())
        model = LoadedModel(LIMITS, runtime, SHAPES)
        assert model.activation_bytes == figures.activations(SHAPES) + per_token * LIMITS.context_length
    assert LoadedModel(LIMITS, "onnxruntime", None).activation_bytes == 0
    assert LoadedModel(LIMITS, "unknown", SHAPES).activation_bytes == 0


def test_a_small_cache_is_the_minimum_itself() -> None:
    small = LoadedModel(replace(LIMITS, context_length=64), "onnxruntime", None)
    assert kv_budget([small], 0) == small.kv_capacity == 4 * 64 * 40_000


def test_a_draft_models_cache_is_that_of_its_tokens_and_drafts_or_full_slots() -> None:
    draft = replace(LIMITS, context_length=100, kv_bytes_per_token=10)
    assert draft_kv_bytes(50, draft, 8) == (50 + 4 * 8) * 10
    assert draft_kv_bytes(400, draft, 8) == 4 * 100 * 10


def test_no_token_fits_a_budget_that_the_drafts_alone_exceed() -> None:
    assert max_tokens_with_draft(0, LIMITS, LIMITS, 8) == 0


def test_the_memory_for_grammars_follows_the_vocabulary() -> None:
    # Measured with llguidance 1.9.1, while they are built: 55 MiB of 151,936 tokens.
    assert grammar_bytes(151_936) == pytest.approx(55 * MIB, rel=0.12)
    assert grammar_bytes(49_152) == pytest.approx(20 * MIB, rel=0.06)
