"""Qwen2.5-Coder-1.5B fills gaps in real code, and the code runs."""

from __future__ import annotations

from typing import Any

import ollama
import pytest

from edgekit.generation.model import load_model
from tests.conftest import LARGE, Export
from tests.daemon.http.conftest import Serve

PRIME = (
    """def is_prime(n: int) -> bool:
    '''Return whether n is a prime number.'''
    if n < 2:
        return False
""",
    """    return True


primes = [n for n in range(30) if is_prime(n)]
""",
)
READ = (
    "import json\n\n\ndef count(path):\n    with open(path) as file:\n",
    "    return len(data)\n",
)
SHAPES = "from dataclasses import dataclass\n\n\n@dataclass\nclass Circle:\n    radius_in_mm: float\n"
DESCRIBE = ('def describe(circle: Circle) -> str:\n    return f"a circle of radius {circle.', ' mm"\n')


@pytest.mark.slow
def test_a_code_model_completes_code_that_runs(serve: Serve, export: Export, tmp_path: Any) -> None:
    served = serve(load_model(export("cpu", LARGE), context_length=4096))

    def infill(prefix: str, suffix: str, **fields: Any) -> str:
        body = {"input_prefix": prefix, "input_suffix": suffix, "n_predict": 64, **fields}
        reply = served.http.post("/infill", json=body, timeout=600).json()
        return str(prefix + reply["content"] + suffix)

    found: dict[str, Any] = {}
    exec(infill(*PRIME), found)  # noqa: S102
    assert found["primes"] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]

    with ollama.Client(served.server.url, timeout=600) as client:
        filled = client.generate(LARGE, READ[0], suffix=READ[1], options={"num_predict": 64})
    (tmp_path / "data.json").write_text("[1, 2, 3]", encoding="utf-8")
    exec(READ[0] + filled.response + READ[1], found)  # noqa: S102
    assert found["count"](tmp_path / "data.json") == 3

    # The attribute's name is in another file only.
    described = infill(*DESCRIBE, input_extra=[{"filename": "shapes.py", "text": SHAPES}], stop=["}"])
    assert "{circle.radius_in_mm" in described
