"""The Python of docs/clients.md, as it stands there, against a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.generation.model import load_model
from tests.clients.conftest import ClientPython
from tests.conftest import Export
from tests.scripted import serving

pytestmark = [pytest.mark.clients, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def test_the_snippets_of_the_page_run_and_get_answers(client_python: ClientPython, export: Export) -> None:
    model = load_model(export("cpu"))
    with serving(model) as server:
        answers = client_python("snippets", server.url, model.info.name, PAGE)
    assert len(answers) == 6
    assert not [answer for answer in answers if "Traceback" in answer]
    # The small model names a city when asked for one, and not always that of the question.
    assert sum("Paris" in answer for answer in answers) >= 4, answers
