"""Asks multiple-choice questions with lm-eval; runs in the environment that has it.

    ask_questions.py JOB RESULT        with the API key, if any, in $OPENAI_API_KEY

JOB is a JSON object: `url`, `model`, `api` (`chat` or `completions`), `tokenizer` (a folder, or null: then the server
is asked), `seed`, `tasks` (lm-eval's configurations), `cache` (answers so far) and `usage` (a file to which tokens and
seconds of every request are appended). RESULT gets, by task, whether each question was answered rightly.
An error is printed on stdout, progress on stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import requests
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

# Longer prompts are refused by the server; lm-eval would cut them without a word.
_MAX_LENGTH = 1 << 20


class _NoEchoError(ValueError):
    pass


class _Counting:
    """Appends the tokens and the seconds of every request to a file."""

    usage: Path

    def model_call(self, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        reply = super().model_call(*arguments, **options)  # type: ignore[misc]
        usage = (reply or {}).get("usage") or {}
        row = [usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, time.perf_counter() - started]
        with self.usage.open("a", encoding="ascii") as file:
            file.write(json.dumps(row) + "\n")
        return reply


class _Completions(_Counting, LocalCompletionsAPI):
    @staticmethod
    def parse_logprobs(outputs: Any, tokens: Any = None, ctxlens: Any = None, **options: Any) -> Any:
        # A server that scores what it generates alone would make all choices equally likely.
        for choice, prompt in zip(outputs[0]["choices"], tokens, strict=True):
            scored = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(scored) <= len(prompt):
                raise _NoEchoError("the server does not echo a prompt with log probabilities; --api chat needs none")
        return LocalCompletionsAPI.parse_logprobs(outputs, tokens, ctxlens, **options)


class _Chat(_Counting, LocalChatCompletion):
    pass


def main() -> None:
    """Do the job."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        result = _ask(job)
    except KeyboardInterrupt:
        sys.exit(130)
    except requests.RequestException as error:
        reply = error.response.text[:300] if error.response is not None else ""
        print(f"{error} {reply}".strip())
        sys.exit(1)
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        print(f"lm-eval: {error}".splitlines()[0])
        sys.exit(1)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def _ask(job: dict[str, Any]) -> dict[str, list[bool]]:
    chat = job["api"] == "chat"
    options: dict[str, Any] = {
        "base_url": f"{job['url']}/v1/{'chat/completions' if chat else 'completions'}",
        "model": job["model"],
        "seed": job["seed"],
        "timeout": 3600,
        "max_length": _MAX_LENGTH,
    }
    if not chat:
        backend = "huggingface" if job["tokenizer"] else "remote"
        key = os.environ.get("OPENAI_API_KEY")
        options |= {"tokenizer": job["tokenizer"], "tokenizer_backend": backend, "auth_token": key}
    model = (_Chat if chat else _Completions)(**options)
    model.usage = Path(job["usage"])
    found = simple_evaluate(
        model,
        tasks=job["tasks"],
        task_manager=TaskManager(include_defaults=False),
        use_cache=job["cache"],
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        random_seed=job["seed"],
        numpy_random_seed=job["seed"],
        torch_random_seed=job["seed"],
        fewshot_random_seed=job["seed"],
    )
    metric = "exact_match" if chat else "acc"
    return {
        task: [bool(sample[metric]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in found["samples"].items()
    }


if __name__ == "__main__":
    main()
