"""Sets of multiple-choice questions, asked by lm-eval."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.environment import run
from accuracy.ledger import Ledger
from accuracy.questions import Question, choose, is_chinese, read, task_of, write

from edgekit.errors import ConfigError
from edgekit.machine import cache_folder

__all__ = ["HUB", "OWN", "Asked", "ask", "questions_file"]

OWN = ("english", "chinese")
"""Sets of ours, in `inputs/questions`: a few easy questions, which show that asking works."""

HUB = ("ceval", "mmlu")
"""Sets on the Hugging Face hub."""

# Nothing of the hub is needed; only errors of transformers are of interest, which says that it has no torch.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Asked:
    """What was found.

    Attributes:
        right: Whether each question was answered rightly, subject after subject.
        prompt_tokens: Tokens of all prompts; by log-likelihood, four for each question.
        tokens: Tokens of all answers.
        seconds: Time of all requests.
        shots: Examples before each question.
    """

    right: list[bool]
    prompt_tokens: int
    tokens: int
    seconds: float
    shots: int


def questions_file(name: str, python: Path | None, source: str | None) -> Path:
    """Return the file of a set; one of the hub's is fetched on first use.

    Args:
        name: One of `OWN` or `HUB`, or the path of a file.
        python: The Python that has `datasets`; needed to fetch.
        source: Another repository, or a folder with a copy of it, to fetch from.

    Raises:
        EdgekitError: It cannot be fetched.
    """
    if name in OWN:
        return Path(__file__).parents[1] / "inputs" / "questions" / f"{name}.jsonl"
    if name not in HUB:
        return Path(name)
    path = cache_folder() / "benchmarks" / "questions" / f"{name}.jsonl"
    if source or not path.exists():
        assert python is not None, "lm-eval's environment has `datasets`"
        print(f"fetch {source or name}", file=sys.stderr)
        run(python, "hub", name, path, *([source] if source else []), environment={})
    return path


def ask(
    path: Path, python: Path, job: dict[str, Any], *, identity: str, folder: Path, key: str | None, options: Any
) -> Asked:
    """Ask the questions of a file.

    Args:
        path: The file.
        python: The Python that has lm-eval.
        job: `url`, `model`, `api`, `tokenizer` and `seed`; see `ask_questions.py`.
        identity: What is asked at that address; answers are kept by it.
        folder: For answers so far.
        key: An API key, or None.
        options: `limit`, `shots`, `max_tokens` and `fresh`, of the command line.

    Raises:
        EdgekitError: The file is invalid, or a request failed.
    """
    try:
        questions = read(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no questions: {error}", hint="benchmarks/accuracy/questions.py documents the form"
        ) from error
    tests = choose(questions, options.limit)
    examples = Counter(question["subject"] for question in questions if question["split"] == "dev")
    shots = min(options.shots, *(examples[subject] for subject in tests))
    settings = {
        **job,
        "url": identity,
        "questions": hashlib.sha256(path.read_bytes()).hexdigest(),
        # With another limit, tokens and seconds are others too.
        "limit": options.limit,
        "shots": shots,
        "max_tokens": options.max_tokens or 32,
    }
    ledger = Ledger(folder, path.stem, settings, fresh=options.fresh)
    try:
        parts = ledger.path.with_suffix("")
        parts.mkdir(exist_ok=True)
        cache, usage, result = parts / "answers", parts / "usage", parts / "result.json"
        if options.fresh:
            for old in (usage, *parts.glob("answers_*")):
                old.unlink(missing_ok=True)
        tasks = _write_tasks(questions, tests, settings, parts)
        body = {**job, "tasks": tasks, "cache": str(cache), "usage": str(usage)}
        (parts / "job.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
        environment = {**_OFFLINE, "HF_DATASETS_CACHE": str(parts / "datasets"), "OPENAI_API_KEY": key or ""}
        run(python, "ask_questions", parts / "job.json", result, environment=environment)
        found = json.loads(result.read_text(encoding="utf-8"))
        for task, subject in zip(tasks, tests, strict=True):
            ledger.add(subject, {"right": found[task["task"]]})
        spent = [json.loads(line) for line in usage.read_text(encoding="ascii").splitlines()]
    finally:
        ledger.close()
    right = [one for task in tasks for one in found[task["task"]]]
    prompt_tokens, tokens, seconds = (sum(column) for column in zip(*spent, strict=True))
    return Asked(right, prompt_tokens, tokens, seconds, shots)


def _write_tasks(
    questions: list[Question], tests: dict[str, list[Question]], settings: Mapping[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """Write the questions of each subject into files, and return lm-eval's tasks on them."""
    tasks = []
    form = {"chinese": is_chinese(questions), **{name: settings[name] for name in ("api", "shots", "max_tokens")}}
    for index, (subject, chosen) in enumerate(tests.items()):
        rows = {"test": chosen}
        if settings["shots"]:
            rows["dev"] = [one for one in questions if one["split"] == "dev" and one["subject"] == subject]
        files = {split: str(folder / f"{index}-{split}.jsonl") for split in rows}
        for split, file in files.items():
            write(Path(file), rows[split])
        tasks.append(task_of(f"questions_{index}", subject, files, **form))
    return tasks
