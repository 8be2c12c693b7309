"""lm-eval's models for OpenAI-compatible servers, against a real model: token ids in batches, texts, chats, errors."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.generation.model import load_model
from tests.clients.conftest import ClientPython
from tests.conftest import Export
from tests.scripted import serving

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def found(client_python: ClientPython, export: Export) -> dict[str, Any]:
    model = load_model(export("cpu"))
    with serving(model) as server:
        got: dict[str, Any] = client_python("lm_eval_apis", server.url, model.info.name)
    return got


def test_choices_are_scored_from_batches_of_token_ids(found: dict[str, Any]) -> None:
    # It has found the daemon's tokenizer by itself.
    assert found["backend"] == ["remote", True]
    scores = [score for score, _ in found["batched"]]
    # France: Paris or Berlin; Germany: Paris or Berlin.
    assert scores[0] > scores[1]
    assert scores[2] < scores[3]
    assert found["batched"][0][1], "Paris is what the model would say"


@pytest.mark.parametrize("way", ["single", "text", "concurrent"])
def test_the_scores_are_the_same_in_every_way_of_asking(found: dict[str, Any], way: str) -> None:
    assert [greedy for _, greedy in found[way]] == [greedy for _, greedy in found["batched"]]
    assert [score for score, _ in found[way]] == pytest.approx([score for score, _ in found["batched"]], abs=1e-3)


def test_a_whole_text_is_scored(found: dict[str, Any]) -> None:
    (score,) = found["rolling"]
    assert -100 < score < 0


def test_texts_are_generated_in_batches(found: dict[str, Any]) -> None:
    assert found["generated"] == found["generated singly"]
    assert found["generated"][0].strip().startswith("four, five")
    assert all("\n" not in text for text in found["generated"])


def test_a_chat_is_answered(found: dict[str, Any]) -> None:
    assert "Paris" in found["chat"][0]


def test_errors_are_those_of_its_http_client(found: dict[str, Any]) -> None:
    assert found["errors"] == [404, 404]
