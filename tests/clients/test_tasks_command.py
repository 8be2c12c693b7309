"""`scripts/bench tasks` on Qwen2.5-Coder-1.5B, with HumanEval and lm-eval; and sets in the form of the hub's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.generation.model import load_model
from tests.conftest import LARGE, Export
from tests.scripted import scripted_model, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]

Tasks = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    """Runs the command in a folder of its own, with the environment that it installs."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "EDGEKIT_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hub"),
        }
        command = [sys.executable, str(ROOT / "benchmarks" / "tasks.py"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3500, check=False
        )

    return run


def scores(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[int, float]]:
    """Return number and score by task."""
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: (int(count), float(score))
        for name, count, score in re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.]+) \|", done.stdout, re.MULTILINE)
    }


def test_a_code_model_solves_the_first_problems_and_easy_questions(tasks: Tasks, export: Export) -> None:
    with serving(load_model(export("cpu", LARGE), context_length=4096)) as server:
        found = scores(tasks("--url", server.url, "--limit", "4"))
        assert found["HumanEval, pass@1"] >= (4, 75.0)
        assert found["english (ours)"] >= (4, 50.0)
        assert found["chinese (ours)"] >= (4, 50.0)
        by_likelihood = scores(
            tasks("--url", server.url, "--limit", "4", "--api", "completions", "--tasks", "humaneval,english")
        )
        assert by_likelihood["HumanEval, pass@1"] >= (4, 50.0)
        assert by_likelihood["english (ours)"] >= (4, 50.0)


def test_sets_in_the_form_of_the_hubs_are_fetched_converted_and_asked(tasks: Tasks, tmp_path: Path) -> None:
    """Folders laid out as the repositories are: C-Eval's configurations are subjects, MMLU's `all` has them in rows."""
    ceval = {"A": "甲", "B": "乙", "C": "丙", "D": "丁", "explanation": ""}
    repository(
        tmp_path / "ceval",
        {
            subject: {
                "dev": [{"id": 0, "question": f"{subject}例题？", **ceval, "answer": "B"}],
                "val": [{"id": 1, "question": f"{subject}题？", **ceval, "answer": "C"}],
                "test": [{"id": 2, "question": f"{subject}无答案？", **ceval, "answer": ""}],
            }
            for subject in ("law", "logic")
        },
    )
    mmlu = {"choices": ["one", "two", "three", "four"], "subject": "law"}
    repository(
        tmp_path / "mmlu",
        {
            "all": {
                "dev": [{"question": "An example?", **mmlu, "answer": 1}],
                "test": [{"question": "First?", **mmlu, "answer": 2}, {"question": "Second?", **mmlu, "answer": 3}],
            }
        },
    )

    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "答案是C。" if "题" in prompt else "(C) three"

    with serving(scripted_model(script)) as server:
        options = ("--url", server.url, "--shots", "5")
        assert scores(tasks(*options, "--tasks", "ceval", "--source", str(tmp_path / "ceval"))) == {
            "C-Eval, val": (2, 100.0)
        }
        assert scores(tasks(*options, "--tasks", "mmlu", "--source", str(tmp_path / "mmlu"))) == {
            "MMLU, test": (2, 50.0)
        }
        asked = len(prompts)
        # Answers so far are kept, and a limit of the same set is another run.
        assert scores(tasks(*options, "--tasks", "ceval,mmlu")) == {"C-Eval, val": (2, 100.0), "MMLU, test": (2, 50.0)}
        assert len(prompts) == asked
    # The subject's only example came first, with its letter.
    law = next(prompt for prompt in prompts if "law题" in prompt)
    assert law.index("law例题") < law.index("<|im_start|>assistant\nB") < law.index("law题")
    assert "logic" not in law


def repository(folder: Path, configurations: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write a copy of a data set's repository, whose files `datasets` finds by the card's configurations."""
    card = ["---", "configs:"]
    for name, splits in configurations.items():
        (folder / name).mkdir(parents=True)
        card += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")
