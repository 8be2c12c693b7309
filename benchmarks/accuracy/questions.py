"""Multiple-choice questions in the form of MMLU and C-Eval: files, the sets that exist, and lm-eval's tasks.

A file has one JSON object a line:

    {"subject": "geography", "split": "test", "question": "…", "A": "…", "B": "…", "C": "…", "D": "…", "answer": "B"}

Questions of the split `dev` are shown as examples before those of the split `test` of the same subject.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

__all__ = ["LETTERS", "Question", "choose", "from_ceval", "from_mmlu", "is_chinese", "read", "task_of", "write"]

LETTERS = ("A", "B", "C", "D")
_KEYS = ("subject", "split", "question", *LETTERS, "answer")
_HAN = re.compile(r"[\u4e00-\u9fff]")
# One of the letters, in "B", "(B)", "B. Lima" or "答案是B".
_LETTER = r"(?<![A-Za-z])([ABCD])(?![A-Za-z])"

Question = dict[str, str]
"""The object of one line."""


def from_ceval(row: Mapping[str, Any], subject: str, split: str) -> Question:
    """Convert a row of `ceval/ceval-exam`: question, A, B, C, D and the letter of the answer.

    Raises:
        ValueError: The row has no answer, as those of C-Eval's own split `test`, or a field is missing.
    """
    fields = {letter: row.get(letter) for letter in LETTERS}
    return _checked({"subject": subject, "split": split, "question": row.get("question"), **fields}, row.get("answer"))


def from_mmlu(row: Mapping[str, Any], split: str) -> Question:
    """Convert a row of `cais/mmlu`: question, subject, a list of four choices and the index of the answer.

    Raises:
        ValueError: A field is missing, or the answer is not an index.
    """
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, (list, tuple)) or len(choices) != 4:
        raise ValueError(f"not four choices: {choices!r}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < 4:
        raise ValueError(f"answer {answer!r} is not an index of four choices")
    fields = dict(zip(LETTERS, choices, strict=True))
    question = {"subject": row.get("subject"), "split": split, "question": row.get("question"), **fields}
    return _checked(question, LETTERS[answer])


def _checked(fields: Mapping[str, Any], answer: Any) -> Question:
    question = {**fields, "answer": answer}
    for key in _KEYS:
        value = question.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"`{key}` is {value!r}, not a string")
    if question["answer"].strip() not in LETTERS:
        raise ValueError(f"answer {answer!r} is none of A, B, C and D")
    if question["split"] not in ("dev", "test"):
        raise ValueError(f"split {question['split']!r} is neither dev nor test")
    return {key: question[key].strip() for key in _KEYS}


def read(path: Path) -> list[Question]:
    """Read a file of questions.

    Raises:
        ValueError: A line is not a question, or there is none of the split `test`.
    """
    found: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
                found.append(_checked(value, value.get("answer")))
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if all(question["split"] != "test" for question in found):
        raise ValueError(f"{path} has no question of the split `test`")
    return found


def write(path: Path, questions: Iterable[Question]) -> None:
    """Write a file of questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in questions), encoding="utf-8")
    partial.replace(path)


def choose(questions: Iterable[Question], limit: int | None) -> dict[str, list[Question]]:
    """Return the questions of the split `test` by subject.

    Args:
        questions: Of all splits.
        limit: Their number in all, taken from each subject in turn; None takes all.
    """
    subjects: dict[str, list[Question]] = {}
    for question in questions:
        if question["split"] == "test":
            subjects.setdefault(question["subject"], []).append(question)
    chosen: dict[str, list[Question]] = {}
    for question in list(_in_turn(subjects.values()))[:limit]:
        chosen.setdefault(question["subject"], []).append(question)
    return chosen


def _in_turn(lists: Iterable[list[Question]]) -> Iterator[Question]:
    for row in zip_longest(*lists):
        yield from (question for question in row if question is not None)


def is_chinese(questions: Iterable[Question]) -> bool:
    """Return whether most of the questions have a Chinese character."""
    marks = [bool(_HAN.search(question["question"])) for question in questions]
    return sum(marks) * 2 > len(marks)


def task_of(
    name: str, subject: str, files: Mapping[str, str], *, api: str, chinese: bool, shots: int, max_tokens: int
) -> dict[str, Any]:
    """Return lm-eval's configuration of the questions of one subject.

    Args:
        name: The task's name.
        subject: The subject.
        files: Paths of the questions by split; `dev` is needed for examples.
        api: `completions` compares the log-likelihoods of " A" to " D", with the prompts of lm-eval's own tasks
            `mmlu` and `ceval-valid`; `chat` asks for a letter.
        chinese: Whether the prompt is Chinese.
        shots: Examples before each question; at most as many as the subject has.
        max_tokens: Limit of an answer by chat.
    """
    text = "{{question}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n"
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": dict(files)},
        "test_split": "test",
        "num_fewshot": shots,
        "description": _description(subject, chinese=chinese),
        "metadata": {"version": 1.0},
    }
    if shots:
        task |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    metric = {"aggregation": "mean", "higher_is_better": True}
    if api != "chat":
        return task | {
            "output_type": "multiple_choice",
            "doc_to_text": text + ("答案\uff1a" if chinese else "Answer:"),
            "doc_to_choice": list(LETTERS),
            "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
            "metric_list": [{"metric": "acc", **metric}],
        }
    demand = "只回答正确选项的字母。" if chinese else "Answer with the letter of the correct choice only."
    first = {"function": "regex", "regex_pattern": _LETTER, "group_select": 0, "fallback": "none"}
    return task | {
        "output_type": "generate_until",
        "doc_to_text": text + demand,
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": max_tokens, "do_sample": False, "temperature": 0},
        "metric_list": [{"metric": "exact_match", **metric}],
        "filter_list": [{"name": "letter", "filter": [first, {"function": "take_first"}]}],
    }


def _description(subject: str, *, chinese: bool) -> str:
    if chinese:
        # C-Eval's subjects have English names.
        about = f"关于{subject}的" if _HAN.search(subject) else ""
        return f"以下是{about}单项选择题\uff0c请选出其中的正确答案。\n\n"
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
