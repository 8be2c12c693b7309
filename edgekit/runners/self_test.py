"""Runs a bundle's self-test: a runner's logits for a short prompt against those that the exporter computed.

The prompt is computed as answers are, in chunks and then token by token; with several sequence slots in two of them,
one a step behind the other. So it sees a wrong graph or kernel, weights that were packed or read wrongly, wrong
positions, and a KV cache that is continued in the wrong place. docs/decisions/0033 has the measurements behind the
bounds, and what it does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekit.bundle.self_test import LARGEST, ExpectedRow, SelfTest
from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk, Runner

__all__ = ["MAX_KL", "Report", "check_self_test", "max_error", "self_test"]

Doubles = npt.NDArray[np.float64]

MAX_KL = 0.1
"""Largest KL divergence in nats: eight times the largest that was measured. It sees a single wrong token that wins."""


def max_error(backend: Backend) -> float:
    """Largest relative error of the logits: several times what rounding activations to 8 bits does, or to FP16."""
    return 0.1 if backend.rounds_activations else 0.03


@dataclass(frozen=True, slots=True)
class Report:
    """How far a runner's logits are from the expected ones.

    Attributes:
        runner: The runner.
        kl: KL divergence of the next-token distributions in nats, the largest of all rows.
        error: Relative error of the logits without their mean, the largest of all rows.
        max_error: Its bound.
        max_abs: Largest difference of a log probability among a row's most probable tokens.
        top1: Fraction of the rows with the expected most probable token.
        rows: Number of rows compared: fewer than expected if the context is too short for the prompt, or even none.
        ok: The figures are within their bounds.
    """

    runner: str
    kl: float
    error: float
    max_error: float
    max_abs: float
    top1: float
    rows: int
    ok: bool

    def __str__(self) -> str:
        return (
            f"error of the logits {self.error:.2%} (at most {self.max_error:.0%}), KL divergence {self.kl:.2g} nats "
            f"(at most {MAX_KL:g}), most probable token as expected in {self.top1 * self.rows:.0f} of {self.rows} rows"
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens to compute in one step, and the logits expected after the last of them, if any."""

    tokens: tuple[int, ...]
    row: ExpectedRow | None


@dataclass(slots=True)
class _Figures:
    """Figures of each row compared."""

    kl: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    max_abs: list[float] = field(default_factory=list)
    same_top: list[bool] = field(default_factory=list)

    def add(self, expected: ExpectedRow, logits: Doubles) -> None:
        """Compare the logits of one row, `[vocab]`."""
        with np.errstate(all="ignore"):  # infinities and NaN fail the bounds
            largest = logits.max()
            log_sum = largest + np.log(np.exp(logits - largest).sum())
            got = logits[expected.ids]
            a, b = expected.logits - expected.log_sum_exp, got - log_sum
            # The tokens that are not in the row count as one, which can only make the divergence smaller.
            p, q = (_with_rest(np.exp(log)) for log in (a, b))
            wanted, found = (values - values.mean() for values in (expected.logits, got))
            self.kl.append(float(np.sum(p * (np.log(p) - np.log(q)))))
            self.error.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
            self.max_abs.append(float(np.abs(b - a)[:LARGEST].max()))
        self.same_top.append(int(logits.argmax()) == int(expected.ids[0]))


def self_test(runner: Runner, expected: SelfTest) -> Report:
    """Run a self-test in the first and the last sequence slot, which must be empty and are empty afterwards.

    Args:
        runner: A runner of the bundle.
        expected: The bundle's self-test.

    Raises:
        RunnerError: A step failed, or the runner's vocabulary is smaller than the bundle's.
    """
    limits = runner.limits
    largest = max((*expected.tokens, *(int(row.ids.max()) for row in expected.rows)))
    if largest >= limits.vocab_size:
        raise RunnerError(f"the runner's vocabulary has {limits.vocab_size} tokens; the self-test has token {largest}")
    parts = list(_parts(expected, limits.context_length, limits.max_chunk))
    slots = sorted({0, limits.sequence_slots - 1})
    figures = _Figures()
    try:
        for step in range(len(parts) + len(slots) - 1 if parts else 0):
            running = [(slot, parts[step - late]) for late, slot in enumerate(slots) if 0 <= step - late < len(parts)]
            results = runner.run([Chunk(slot, part.tokens) for slot, part in running])
            for (_, part), logits in zip(running, results, strict=True):
                if part.row is not None:
                    figures.add(part.row, logits[-1].astype(np.float64))
    finally:
        for slot in slots:
            runner.truncate(slot, 0)
    backend, rows = runner.backend, len(figures.kl)
    # numpy's maximum keeps NaN.
    kl, error, max_abs = (float(np.max([0.0, *values])) for values in (figures.kl, figures.error, figures.max_abs))
    return Report(
        runner=str(backend),
        kl=kl,
        error=error,
        max_error=max_error(backend),
        max_abs=max_abs,
        top1=sum(figures.same_top) / rows if rows else 0.0,
        rows=rows,
        ok=kl <= MAX_KL and error <= max_error(backend),
    )


def check_self_test(runner: Runner, expected: SelfTest) -> Report:
    """Run a self-test; see `self_test`.

    Raises:
        RunnerError: `self_test_failed`, with the figures; or as `self_test`.
    """
    report = self_test(runner, expected)
    if not report.ok:
        raise RunnerError(
            f"{report.runner} computes wrong logits with this bundle: {report}",
            hint="edgekit verify DIR --run tries every runner; if others pass, please report this",
            code="self_test_failed",
        )
    return report


def _parts(expected: SelfTest, context_length: int, max_chunk: int) -> Iterator[_Part]:
    """Divide the prompt into what fits the runner's limits."""
    start = 0
    for size, row in zip(expected.chunks, expected.rows, strict=True):
        end = start + size
        if end > context_length:
            return
        while start < end:
            stop = min(start + max_chunk, end)
            yield _Part(expected.tokens[start:stop], row if stop == end else None)
            start = stop


def _with_rest(probabilities: Doubles) -> Doubles:
    together: Doubles = np.append(probabilities, 1 - probabilities.sum())
    together[together <= 0] = np.finfo(np.float64).tiny
    return together
