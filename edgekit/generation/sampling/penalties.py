"""Logit bias and penalties for repeated tokens, applied before sampling.

Only the affected logits are touched, however large the vocabulary is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.generation.types import Sampling

__all__ = ["Penalties"]

Logits = npt.NDArray[np.float32]


class Penalties:
    """Bias and penalties of one sequence, in llama.cpp's order.

    1. `logit_bias` is added.
    2. `repetition_penalty` divides positive logits and multiplies negative ones, once, for each token among the last
       `repeat_last_n` of prompt and completion (Keskar et al. 2019, "CTRL", with llama.cpp's sign rule).
    3. `frequency_penalty` times the token's count in the completion, and `presence_penalty` once, are subtracted
       (OpenAI's formula). The prompt does not count.

    Args:
        sampling: The request's parameters.
        vocab_size: Width of a row of logits.
        prompt: The prompt's tokens.

    Raises:
        RequestError: `logit_bias` names a token outside the vocabulary.
    """

    def __init__(self, sampling: Sampling, *, vocab_size: int, prompt: Sequence[int] = ()) -> None:
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self._biased = np.array(list(sampling.logit_bias), np.intp)
        sampling.check_vocabulary(vocab_size)
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._repetition = np.float32(sampling.repetition_penalty)
        self._completion: _Counts | None = None
        if self._presence or self._frequency:
            self._completion = _Counts()
        self._recent: _Recent | None = None
        if sampling.repetition_penalty != 1 and sampling.repeat_last_n:
            self._recent = _Recent(sampling.repeat_last_n, prompt)

    @property
    def active(self) -> bool:
        """Whether any logit may change."""
        return bool(self._biased.size or self._completion or self._recent)

    def accept(self, token: int) -> None:
        """Count a token of the completion."""
        if self._completion:
            self._completion.add(token)
        if self._recent:
            self._recent.push(token)

    def apply(self, logits: Logits) -> Logits:
        """Return the logits with bias and penalties: a copy, or the array itself if nothing changes."""
        if not self.active:
            return logits
        logits = logits.copy()
        if self._biased.size:
            logits[self._biased] += self._bias
        if self._recent:
            ids, _ = self._recent.counts.present()
            values = logits[ids]
            logits[ids] = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._completion:
            ids, counts = self._completion.present()
            logits[ids] -= (self._presence + self._frequency * counts).astype(np.float32)
        return logits


class _Counts:
    """Counts of the tokens in a multiset, as two arrays that are always up to date."""

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.empty(64, np.intp)
        self._counts = np.zeros(64, np.int64)

    def add(self, token: int) -> None:
        index = self._index.setdefault(token, len(self._index))
        if index == self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[index] = token
        self._counts[index] += 1

    def remove(self, token: int) -> None:
        """Remove one occurrence; after the last one, the token at the end moves to its index."""
        index = self._index[token]
        self._counts[index] -= 1
        if self._counts[index]:
            return
        last = len(self._index) - 1
        moved = int(self._ids[last])
        self._ids[index], self._counts[index] = moved, self._counts[last]
        self._index[moved] = index
        self._counts[last] = 0
        del self._index[token]

    def present(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Return the distinct tokens and their counts."""
        size = len(self._index)
        return self._ids[:size], self._counts[:size]


class _Recent:
    """Counts of a sequence's last tokens.

    Args:
        window: Number of tokens; -1 keeps all.
        tokens: The start of the sequence.
    """

    def __init__(self, window: int, tokens: Sequence[int]) -> None:
        self.counts = _Counts()
        self._window: deque[int] | None = None if window < 0 else deque(maxlen=window)
        for token in tokens if window < 0 else tokens[-window:]:
            self.push(token)

    def push(self, token: int) -> None:
        window = self._window
        if window is not None:
            if len(window) == window.maxlen:
                self.counts.remove(window[0])
            window.append(token)
        self.counts.add(token)
