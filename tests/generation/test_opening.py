from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import GenerationConfig
from edgekit.generation import opening
from edgekit.generation.memory_budget import Loaded, grammar_bytes, kv_budget, model_shapes
from edgekit.generation.model import TextModel
from edgekit.generation.opening import Shares, open_model, share_memory
from tests.generation.bundles import tiny_bundle

CONFIG = GenerationConfig(threads=1, parallel=8, prefix_memory_mib=0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TextModel, Bundle]]:
    bundle = open_bundle(tiny_bundle(tmp_path_factory.mktemp("onnx"), "onnx"))
    model = open_model(bundle, CONFIG)
    yield model, bundle
    model.close()


def _budget(model: TextModel, bundle: Bundle, available: int) -> int:
    return kv_budget([Loaded(model.runner.limits, model.runner.backend.runtime, model_shapes(bundle.path))], available)


def _enough(model: TextModel, bundle: Bundle, kv_bytes: int) -> int:
    """The least memory in which the KV cache may have so many bytes."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _budget(model, bundle, middle) >= kv_bytes else (middle + 1, high)
    return low


def test_grammars_have_a_share_where_the_rest_holds_a_whole_conversation(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    limits = model.runner.limits
    one = limits.context_length * limits.kv_bytes_per_token
    needed = grammar_bytes(limits.vocab_size)
    monkeypatch.setattr("edgekit.generation.memory_budget._LEAST_TOKENS", 1)
    enough = _enough(model, bundle, one) + needed

    def share(available: int | None) -> Shares:
        monkeypatch.setattr(opening, "available_bytes", lambda: available)
        return share_memory(model, bundle, CONFIG)

    assert share(None) == share(1 << 40) == Shares(8 * one, grammars=True)
    # It is taken from the KV cache, so that both together stay within what there is.
    assert share(enough) == Shares(_budget(model, bundle, enough - needed), grammars=True)
    assert share(enough).kv_bytes < _budget(model, bundle, enough)
    assert share(enough - 10) == Shares(_budget(model, bundle, enough - 10), grammars=False)


def test_a_kv_cache_that_is_to_be_small_leaves_room(
    opened: tuple[TextModel, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = opened
    monkeypatch.setattr(opening, "available_bytes", lambda: 1 << 27)
    assert share_memory(model, bundle, GenerationConfig(kv_cache_mib=0, prefix_memory_mib=0)) == Shares(
        0, grammars=True
    )
