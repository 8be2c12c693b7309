"""KL divergence between two models' next-token distributions, accumulated over blocks of the vocabulary.

With logits a and b, and `p = softmax(a)`:  `KL = Σ p (a - b) - logsumexp(a) + logsumexp(b)`.  Both sums are kept
relative to the running maximum logit, so blocks can be added one by one and the logits of the full vocabulary are
never in memory. Sums are in float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.bundle.quality import Figures

__all__ = ["Divergence"]

FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Divergence:
    """Accumulates two models' logits for the same tokens.

    Args:
        targets: The next token of each row, int64 `[rows]`.
    """

    def __init__(self, targets: npt.NDArray[np.int64]) -> None:
        self._targets = targets
        self._a, self._b = _RunningLogits(targets), _RunningLogits(targets)
        self._difference: Doubles = np.zeros(len(targets))

    def add(self, rows: slice, first_token: int, a: FloatArray, b: FloatArray) -> None:
        """Add a block of logits.

        Args:
            rows: The rows they belong to.
            first_token: The token of their first column.
            a: Logits of the reference, float32 `[rows, tokens]`.
            b: Logits of the other model.
        """
        weights, rescale = self._a.add(rows, first_token, a)
        self._b.add(rows, first_token, b)
        added = np.einsum("rt,rt->r", weights, a - b, dtype=np.float64)
        self._difference[rows] = self._difference[rows] * rescale + added

    def kl(self) -> Doubles:
        """KL divergence `KL(a || b)` of each row in nats; a slightly negative rounding result is clipped to 0."""
        mean = self._difference / self._a.sum
        return np.maximum(0.0, mean - self._a.log_sum() + self._b.log_sum())

    def perplexity(self) -> float:
        """Perplexity of the reference."""
        return self._a.perplexity()

    def figures(self) -> Figures:
        """Return all figures of b measured against a."""
        kl = self.kl()
        return Figures(
            perplexity=self._b.perplexity(),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.percentile(kl, 99)),
            top1=float(np.mean(self._a.best == self._b.best)),
        )


class _RunningLogits:
    """One model's running maximum logit and its token, the sum of exponentials, and the target's logit."""

    def __init__(self, targets: npt.NDArray[np.int64]) -> None:
        self._targets = targets
        self._largest: FloatArray = np.full(len(targets), -np.inf, np.float32)
        self.best: npt.NDArray[np.int64] = np.zeros(len(targets), np.int64)
        self.sum: Doubles = np.zeros(len(targets))
        self._target: FloatArray = np.full(len(targets), np.nan, np.float32)

    def add(self, rows: slice, first_token: int, logits: FloatArray) -> tuple[FloatArray, Doubles]:
        """Add a block; return its exponentials and the factor that the previous sums were multiplied by."""
        best = logits.argmax(axis=1)
        largest = logits[np.arange(len(logits)), best]
        before = self._largest[rows]
        better = largest > before
        self.best[rows] = np.where(better, best + first_token, self.best[rows])
        now = np.maximum(before, largest)
        rescale = np.exp((before - now).astype(np.float64))
        exponentials = np.exp(logits - now[:, None])
        self.sum[rows] = self.sum[rows] * rescale + exponentials.sum(axis=1, dtype=np.float64)
        self._largest[rows] = now
        columns = self._targets[rows] - first_token
        in_block = np.flatnonzero((columns >= 0) & (columns < logits.shape[1]))
        self._target[np.arange(len(self._target))[rows][in_block]] = logits[in_block, columns[in_block]]
        return exponentials, rescale

    def log_sum(self) -> Doubles:
        """Log-sum-exp of all logits so far."""
        return np.log(self.sum) + self._largest

    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.log_sum() - self._target)))
