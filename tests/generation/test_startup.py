from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.shapes import model_shapes
from edgekit.config import GenerationConfig
from edgekit.generation import startup
from edgekit.generation.memory_budget import LoadedModel, grammar_bytes, kv_budget
from edgekit.generation.model import TextModel
from edgekit.generation.prefix import QUEUE_BYTES
from edgekit.generation.startup import MemoryPlan, kv_share, open_model, plan_memory
from edgekit.memory import MIB
from edgekit.runners.base import Backend, KvNeed
from edgekit.runners.buckets import KvPool
from tests.generation.bundles import tiny_bundle

CONFIG = GenerationConfig(threads=1, parallel=8, prefix_memory_mib=0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TextModel, Bundle]]:
    bundle = open_bundle(tiny_bundle(tmp_path_factory.mktemp("onnx"), "onnx"))
    model = open_model(bundle, CONFIG)
    yield model, bundle
    model.close()


def _budget(model: TextModel, bundle: Bundle, available: int) -> int:
    return kv_budget(
        [LoadedModel(model.runner.limits, model.runner.backend.runtime, model_shapes(bundle.path))], available
    )


def _enough(model: TextModel, bundle: Bundle, kv_bytes: int) -> int:
    """The smallest available memory with a KV budget of so many bytes."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _budget(model, bundle, middle) >= kv_bytes else (middle + 1, high)
    return low


def test_memory_is_reserved_for_grammars_where_the_rest_holds_a_full_conversation(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    limits = model.runner.limits
    one = limits.context_length * limits.kv_bytes_per_token
    needed = grammar_bytes(limits.vocab_size)
    monkeypatch.setattr("edgekit.generation.memory_budget._MIN_TOKENS", 1)
    enough = _enough(model, bundle, one) + needed

    def plan(available: int | None) -> MemoryPlan:
        monkeypatch.setattr(startup, "available_bytes", lambda: available)
        return plan_memory(model, bundle, CONFIG)

    monkeypatch.setattr(startup, "gpu_free_bytes", lambda: 0)  # of a card that no runner uses
    assert plan(None) == plan(1 << 40) == MemoryPlan(8 * one, 0, grammars=True)
    # The reserve is taken from the KV cache, so that both together fit.
    assert plan(enough) == MemoryPlan(_budget(model, bundle, enough - needed), 0, grammars=True)
    assert plan(enough).kv_bytes < _budget(model, bundle, enough)
    assert plan(enough - 10) == MemoryPlan(_budget(model, bundle, enough - 10), 0, grammars=False)


def test_a_small_kv_cache_leaves_memory_for_grammars(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    monkeypatch.setattr(startup, "available_bytes", lambda: 1 << 27)
    assert plan_memory(model, bundle, GenerationConfig(kv_cache_mib=0, prefix_memory_mib=0)) == MemoryPlan(
        0, 0, grammars=True
    )


def test_grammars_may_take_the_last_of_the_memory_and_no_more(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    needed = grammar_bytes(model.runner.limits.vocab_size)
    for available, grammars in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(startup, "available_bytes", lambda size=available: size)
        plan = plan_memory(model, bundle, GenerationConfig(kv_cache_mib=0, prefix_memory_mib=0))
        assert plan == MemoryPlan(0, 0, grammars=grammars)


def test_the_prefix_cache_and_its_write_queue_leave_less_memory_for_the_kv_cache(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, bundle = opened
    monkeypatch.setattr("edgekit.generation.memory_budget._MIN_TOKENS", 1)
    limits = model.runner.limits
    available = _enough(model, bundle, 4 * limits.context_length * limits.kv_bytes_per_token)
    available += grammar_bytes(limits.vocab_size)

    def kv_bytes(available: int, config: GenerationConfig) -> int:
        monkeypatch.setattr(startup, "available_bytes", lambda: available)
        return plan_memory(model, bundle, config).kv_bytes

    plain = kv_bytes(available, CONFIG)
    assert kv_bytes(available - 4096, CONFIG) < plain < kv_bytes(available + 4096, CONFIG)
    in_memory = GenerationConfig(threads=1, parallel=8, prefix_memory_mib=64)
    assert kv_bytes(available + 64 * MIB, in_memory) == plain
    on_disk = GenerationConfig(threads=1, parallel=8, prefix_memory_mib=64, prefix_folder=tmp_path)
    assert kv_bytes(available + 64 * MIB + QUEUE_BYTES, on_disk) == plain


def test_the_prefix_cache_leaves_a_full_conversation_or_half_of_the_memory(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    limits = model.runner.limits
    one = limits.context_length * limits.kv_bytes_per_token
    monkeypatch.setattr("edgekit.generation.memory_budget._MIN_TOKENS", 1)
    config = GenerationConfig(threads=1, parallel=8, prefix_memory_mib=4)
    assert config.prefix_memory_mib * MIB > one

    def plan(kv_bytes: int) -> MemoryPlan:
        """The plan where the KV cache could have so many bytes if there were no prefix cache."""
        available = _enough(model, bundle, kv_bytes)
        monkeypatch.setattr(startup, "available_bytes", lambda: available)
        return plan_memory(model, bundle, config)

    assert plan(6 * one + 8 * MIB).prefix_bytes == 4 * MIB
    for kv_bytes in (3 * one, 5 * one // 2):
        scarce = plan(kv_bytes)
        assert scarce.kv_bytes >= one
        assert kv_bytes - one - 10 <= scarce.prefix_bytes <= kv_bytes - one
    scarce = plan(one // 2)
    assert one // 4 - 10 <= scarce.prefix_bytes <= one // 4
    assert scarce.kv_bytes >= one // 4


def test_a_card_limits_the_kv_cache_that_is_on_it(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    monkeypatch.setattr("edgekit.generation.memory_budget._MIN_TOKENS", 1)
    monkeypatch.setattr(type(model.runner), "backend", Backend("cuda"))
    for host, card in ((None, 1 << 40), (1 << 40, None), (1 << 40, 200 * MIB), (None, 200 * MIB), (200 * MIB, 1 << 40)):
        monkeypatch.setattr(startup, "available_bytes", lambda host=host: host)
        monkeypatch.setattr(startup, "gpu_free_bytes", lambda card=card: card)
        smallest = min(host or 1 << 40, card or 1 << 40)
        assert plan_memory(model, bundle, CONFIG).kv_bytes <= _budget(model, bundle, smallest)
        if smallest == card:
            assert plan_memory(model, bundle, CONFIG).kv_bytes == _budget(model, bundle, card)


def test_a_kv_cache_that_is_allocated_takes_nothing_of_what_is_left(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    limits = replace(model.runner.limits, kv_pool=KvPool(300, 256, allocated=True))
    monkeypatch.setattr(type(model.runner), "limits", limits)
    pool, grammars = 300 * limits.kv_bytes_per_token, grammar_bytes(limits.vocab_size)
    config = GenerationConfig(threads=1, prefix_memory_mib=4)

    def plan(available: int | None, config: GenerationConfig = config) -> MemoryPlan:
        monkeypatch.setattr(startup, "available_bytes", lambda: available)
        return plan_memory(model, bundle, config)

    assert plan(None) == plan(1 << 30) == MemoryPlan(pool, 4 * MIB, grammars=True)
    enough = (4 * MIB + grammars) * 10 // 9 + 2
    assert plan(enough) == MemoryPlan(pool, 4 * MIB, grammars=True)
    assert plan(enough - 4) == MemoryPlan(pool, 4 * MIB, grammars=False)
    assert plan(2 * MIB) == MemoryPlan(pool, int(2 * MIB * 0.9), grammars=False)
    assert plan(0) == MemoryPlan(pool, 0, grammars=False)


def test_a_runner_that_allocates_its_kv_cache_leaves_memory_for_what_comes_later(
    opened: tuple[TextModel, Bundle], tmp_path: Path
) -> None:
    _, bundle = opened
    vocabulary = grammar_bytes(shapes.vocab) if (shapes := model_shapes(bundle.path)) else 0
    need = KvNeed(position_bytes=2048, capacity=4096, slots=4, on_card=False)
    conversation, full = 8 * MIB, 32 * MIB

    def share(left: int, need: KvNeed = need, draft: Bundle | None = None, **options: Any) -> int:
        return kv_share(bundle, GenerationConfig(threads=1, prefix_memory_mib=16, **options), draft)(left, need)

    assert share(1 << 30) == full
    assert share(full + 16 * MIB + vocabulary - 100) == full - 100
    assert share(conversation + 16 * MIB) == conversation, "the grammars wait"
    assert share(2 * conversation + MIB) == conversation, "the prefix cache gets the rest"
    assert share(MIB) == MIB // 2, "or half"
    assert share(0) == 0
    on_disk = share(conversation + 16 * MIB + QUEUE_BYTES, prefix_folder=tmp_path)
    assert on_disk == conversation
    assert share(1 << 30, kv_cache_mib=3) == 3 * MIB
    # On a card there is neither.
    assert share(MIB, replace(need, on_card=True)) == MIB
    assert share(1 << 30, replace(need, on_card=True)) == full
    drafted = share(conversation + 16 * MIB, draft=bundle)
    assert drafted < conversation - bundle.manifest.memory.weights // 2
