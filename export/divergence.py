"""How far two models' distributions of the next token are apart, a block of the vocabulary at a time.

With logits a and b, and `p = softmax(a)`:  `KL = Σ p (a - b) - logsumexp(a) + logsumexp(b)`.  Both sums are kept with
the largest logit so far factored out, so that blocks can come one after the other, and the logits of a whole vocabulary
are never held. Sums are in float64. It knows no model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.bundle.quality import Figures

__all__ = ["Divergence"]

FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Divergence:
    """Collects two models' logits for the same tokens.

    Args:
        targets: The token that follows each row in the text, int64 `[rows]`.
    """

    def __init__(self, targets: npt.NDArray[np.int64]) -> None:
        self._targets = targets
        self._a, self._b = _Side(targets), _Side(targets)
        self._difference: Doubles = np.zeros(len(targets))

    def add(self, rows: slice, first_token: int, a: FloatArray, b: FloatArray) -> None:
        """Add a block of logits.

        Args:
            rows: Whose they are.
            first_token: The token of their first column.
            a: The reference's, float32 `[rows, tokens]`.
            b: The other's.
        """
        weights, shrunk = self._a.add(rows, first_token, a)
        self._b.add(rows, first_token, b)
        more = np.einsum("rt,rt->r", weights, a - b, dtype=np.float64)
        self._difference[rows] = self._difference[rows] * shrunk + more

    def kl(self) -> Doubles:
        """The divergence of b from a at every row, in nats; rounding can make it a little less than 0, which is 0."""
        mean = self._difference / self._a.sum
        return np.maximum(0.0, mean - self._a.log_sum() + self._b.log_sum())

    def perplexity(self) -> float:
        """Perplexity of the reference."""
        return self._a.perplexity()

    def figures(self) -> Figures:
        """Everything measured of b against a."""
        kl = self.kl()
        return Figures(
            perplexity=self._b.perplexity(),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.percentile(kl, 99)),
            top1=float(np.mean(self._a.best == self._b.best)),
        )


class _Side:
    """One model's logits so far: the largest, which token that is, the sum of exponentials, and the target's."""

    def __init__(self, targets: npt.NDArray[np.int64]) -> None:
        self._targets = targets
        self._largest: FloatArray = np.full(len(targets), -np.inf, np.float32)
        self.best: npt.NDArray[np.int64] = np.zeros(len(targets), np.int64)
        self.sum: Doubles = np.zeros(len(targets))
        self._target: FloatArray = np.full(len(targets), np.nan, np.float32)

    def add(self, rows: slice, first_token: int, logits: FloatArray) -> tuple[FloatArray, Doubles]:
        """Return the block's exponentials, and what the sums so far were multiplied by."""
        best = logits.argmax(axis=1)
        largest = logits[np.arange(len(logits)), best]
        before = self._largest[rows]
        better = largest > before
        self.best[rows] = np.where(better, best + first_token, self.best[rows])
        now = np.maximum(before, largest)
        shrunk = np.exp((before - now).astype(np.float64))
        exponentials = np.exp(logits - now[:, None])
        self.sum[rows] = self.sum[rows] * shrunk + exponentials.sum(axis=1, dtype=np.float64)
        self._largest[rows] = now
        wanted = self._targets[rows] - first_token
        here = np.flatnonzero((wanted >= 0) & (wanted < logits.shape[1]))
        self._target[np.arange(len(self._target))[rows][here]] = logits[here, wanted[here]]
        return exponentials, shrunk

    def log_sum(self) -> Doubles:
        """Logarithm of the sum of exponentials of all logits."""
        return np.log(self.sum) + self._largest

    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.log_sum() - self._target)))
