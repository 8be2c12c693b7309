"""The table of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "markdown"]


@dataclass(frozen=True)
class Row:
    """The score of one task.

    Attributes:
        task: Its name.
        right: Whether each problem was solved.
        prompt_tokens: Tokens of all prompts.
        tokens: Tokens of all answers.
        seconds: Time of all answers, one after the other.
        settings: How it was asked.
    """

    task: str
    right: Sequence[bool]
    prompt_tokens: int
    tokens: int
    seconds: float
    settings: str

    @property
    def score(self) -> float:
        """Share of solved problems."""
        return sum(self.right) / len(self.right)

    @property
    def standard_error(self) -> float:
        """Of the score as an estimate, by the sample's variance, as lm-eval has it; NaN for one problem."""
        count = len(self.right)
        return math.sqrt(self.score * (1 - self.score) / (count - 1)) if count > 1 else math.nan


def markdown(title: str, rows: Sequence[Row]) -> str:
    """Return the table, to paste.

    Args:
        title: A line above it: model, server, date.
        rows: The tasks.
    """
    head = ("task", "n", "score, %", "standard error", "prompt tokens", "answer tokens", "seconds", "settings")
    lines = [title, "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        error = "" if math.isnan(row.standard_error) else f"{100 * row.standard_error:.1f}"
        figures = (f"{100 * row.score:.1f}", error, f"{row.prompt_tokens:,}", f"{row.tokens:,}", f"{row.seconds:,.0f}")
        lines.append(_line((row.task, str(len(row.right)), *figures, row.settings)))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
