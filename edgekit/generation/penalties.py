"""What changes single logits before anything is chosen: bias, and penalties for what was said already.

Only the tokens concerned are touched, however large the vocabulary is. It knows no probabilities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import RequestError
from edgekit.generation.request import Sampling

__all__ = ["Penalties"]

Logits = npt.NDArray[np.float32]


class Penalties:
    """The bias and penalties of one answer, in llama.cpp's order.

    1. `logit_bias` is added.
    2. `repetition_penalty` divides positive logits and multiplies negative ones, once, of tokens among the last
       `repeat_last_n` of prompt and answer (Keskar et al. 2019, "CTRL", with llama.cpp's sign rule).
    3. `frequency_penalty`, as often as the answer holds the token, and `presence_penalty`, once, are subtracted
       (OpenAI's formula). The prompt does not count.

    Args:
        sampling: The request's.
        vocab_size: Width of a row of logits.
        prompt: The prompt's tokens.

    Raises:
        RequestError: `logit_bias` names a token that is not in the vocabulary.
    """

    def __init__(self, sampling: Sampling, *, vocab_size: int, prompt: Sequence[int] = ()) -> None:
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self._biased = np.array(list(sampling.logit_bias), np.intp)
        if self._biased.size and int(self._biased.max()) >= vocab_size:
            raise RequestError(
                f"`logit_bias` names token {int(self._biased.max())}; the vocabulary has {vocab_size}",
                param="logit_bias",
            )
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._repetition = np.float32(sampling.repetition_penalty)
        self._said: _Counts | None = None
        if self._presence or self._frequency:
            self._said = _Counts()
        self._recent: _Recent | None = None
        if sampling.repetition_penalty != 1 and sampling.repeat_last_n:
            self._recent = _Recent(sampling.repeat_last_n, prompt)

    @property
    def active(self) -> bool:
        """Whether any logit may change."""
        return bool(self._biased.size or self._said or self._recent)

    def accept(self, token: int) -> None:
        """Count a token of the answer."""
        if self._said:
            self._said.add(token)
        if self._recent:
            self._recent.push(token)

    def apply(self, logits: Logits) -> Logits:
        """Return the logits to choose from: a copy, or the array itself where nothing changes."""
        if not self.active:
            return logits
        logits = logits.copy()
        if self._biased.size:
            logits[self._biased] += self._bias
        if self._recent:
            ids, _ = self._recent.counts.present()
            values = logits[ids]
            logits[ids] = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._said:
            ids, counts = self._said.present()
            logits[ids] -= (self._presence + self._frequency * counts).astype(np.float32)
        return logits


class _Counts:
    """How often each token of a changing collection is in it; both arrays are always ready."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.intp)
        self._counts = np.zeros(64, np.int64)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def remove(self, token: int) -> None:
        """Take one away; the last one's place goes to the token at the end."""
        place = self._places[token]
        self._counts[place] -= 1
        if self._counts[place]:
            return
        last = len(self._places) - 1
        moved = int(self._ids[last])
        self._ids[place], self._counts[place] = moved, self._counts[last]
        self._places[moved] = place
        self._counts[last] = 0
        del self._places[token]

    def present(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Return the tokens that are there, and how often each is."""
        size = len(self._places)
        return self._ids[:size], self._counts[:size]


class _Recent:
    """The last tokens of a sequence, counted.

    Args:
        most: How many; -1 keeps all.
        tokens: What the sequence begins with.
    """

    def __init__(self, most: int, tokens: Sequence[int]) -> None:
        self.counts = _Counts()
        self._window: deque[int] | None = None if most < 0 else deque(maxlen=most)
        for token in tokens if most < 0 else tokens[-most:]:
            self.push(token)

    def push(self, token: int) -> None:
        window = self._window
        if window is not None:
            if len(window) == window.maxlen:
                self.counts.remove(window[0])
            window.append(token)
        self.counts.add(token)
