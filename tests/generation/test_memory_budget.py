from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.generation.memory_budget import Loaded, draft_bytes, kv_budget, model_shapes, tokens_beside_draft
from edgekit.machine import available_bytes
from edgekit.memory import RUNTIMES, Shapes
from edgekit.runners.base import Limits

MIB = 1 << 20
LIMITS = Limits(context_length=4096, sequence_slots=4, max_chunk=512, vocab_size=1000, kv_bytes_per_token=40_000)
WHOLE = 4 * 4096 * 40_000
SHAPES = Shapes(hidden=576, intermediate=1536, heads=9, vocab=1000)
MODEL = Loaded(LIMITS, "onnxruntime", SHAPES)
DRAFT = Loaded(replace(LIMITS, kv_bytes_per_token=10_000), "onnxruntime", Shapes(128, 384, 4, 1000))


def test_where_memory_abounds_the_slots_may_be_full() -> None:
    assert kv_budget([MODEL], 1 << 40) == WHOLE
    assert kv_budget([MODEL], None) == WHOLE


def test_of_what_is_available_a_share_and_the_activations_of_a_step_are_left() -> None:
    step = RUNTIMES["onnxruntime"].activations(SHAPES)
    assert kv_budget([MODEL], 400 * MIB) == int(400 * MIB * 0.9) - step


def test_there_is_always_room_for_a_short_chat() -> None:
    assert kv_budget([MODEL], 0) == 512 * 40_000


def test_a_draft_models_cache_and_activations_count_too() -> None:
    assert kv_budget([MODEL, DRAFT], None) == WHOLE + WHOLE // 4
    step = sum(RUNTIMES["onnxruntime"].activations(shapes) for shapes in (SHAPES, Shapes(128, 384, 4, 1000)))
    assert kv_budget([MODEL, DRAFT], 400 * MIB) == int(400 * MIB * 0.9) - step
    assert kv_budget([MODEL, DRAFT], 0) == 512 * 50_000


@pytest.mark.parametrize("context", [100, 1000, 4096])
@pytest.mark.parametrize("budget", [100 * 40_000, 10 * MIB, 300 * MIB, WHOLE + WHOLE // 4])
@pytest.mark.parametrize("ahead", [1, 8, 64])
def test_both_models_caches_fit_the_budget_and_hardly_more_would(context: int, budget: int, ahead: int) -> None:
    draft = replace(DRAFT.limits, context_length=context)
    tokens = tokens_beside_draft(budget, LIMITS, draft, ahead)
    assert tokens * 40_000 + draft_bytes(tokens, draft, ahead) <= budget or tokens == 0
    more = tokens + 1
    assert more * 40_000 + draft_bytes(more, draft, ahead) > budget


def test_shapes_come_from_the_bundles_configuration(tmp_path: Path) -> None:
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shapes(tmp_path) == SHAPES
    (tmp_path / "config.json").write_text("{}")
    assert model_shapes(tmp_path) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({}, 1000), ({"": (300, 100)}, 200), ({"": ("max", 100)}, 1000), ({"": (900, 100), "a": (250, 200)}, 50)],
)
def test_available_memory_is_within_every_limit_of_the_cgroup(
    tmp_path: Path, limits: dict[str, tuple[object, int]], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    for group, (limit, used) in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        (folder / "memory.max").write_text(str(limit if limit == "max" else int(str(limit)) * 1024))
        (folder / "memory.current").write_text(str(used * 1024))
    assert available_bytes(tmp_path) == expected * 1024
