"""Logits to the next token, in numpy. It knows no model and no text.

Order: grammar mask and penalties (see penalties.py), then top_k, temperature, typical_p, top_p, min_p, and one draw.
That is llama.cpp's default chain, except that temperature stands where Ollama, vLLM and Transformers have it: before
the filters that look at probabilities, so that `top_p` is a share of the distribution that is drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, RunnerError
from edgekit.generation.filters import draw, largest, nucleus, softmax_floor, typical
from edgekit.generation.logprobs import likeliest, log_normalizer
from edgekit.generation.penalties import Penalties
from edgekit.generation.request import Sampling

__all__ = ["Choice", "Sampler"]

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]

# For each byte of a mask, what its eight tokens may be at most: infinity, or nothing.
_LIMITS: Logits = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, np.inf, -np.inf
).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely it was to the model itself.

    Attributes:
        logprob: Of the raw logits; None unless asked for.
        top: The likeliest tokens with their logprobs, best first; the chosen one need not be among them.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer.

    A seeded sampler draws once for each token, whatever the filters leave: the answer to the same logits is the same,
    one token at a time or many (speculation).

    Args:
        sampling: How to choose.
        vocab_size: Width of a row of logits.
        prompt: The prompt's tokens, for the repetition penalty.
        top_logprobs: How many of the likeliest tokens to report with each choice; None reports no logprobs at all.

    Raises:
        RequestError: `logit_bias` names a token that is not in the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        prompt: Sequence[int] = (),
        top_logprobs: int | None = None,
    ) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._top_logprobs = top_logprobs
        self._penalties = Penalties(sampling, vocab_size=vocab_size, prompt=prompt)
        self._greedy = sampling.greedy
        seed = sampling.seed
        # A seed may be negative in the OpenAI API; numpy wants a natural number.
        self._random = np.random.Generator(np.random.PCG64(None if seed is None else seed & (2**64 - 1)))

    def choose(self, logits: Logits, allowed: Mask | None = None) -> Choice:
        """Choose a token and count it.

        Args:
            logits: float32 `[vocab]`; they are not changed.
            allowed: Which tokens may be chosen: int32 `[ceil(vocab / 32)]`, token i is bit i % 32 of word i // 32.
                None allows all.

        Raises:
            RunnerError: The logits hold NaN or infinity, or no token is possible.
            EdgekitError: None of the allowed tokens is possible.
        """
        best = self._best(logits)
        if allowed is not None and allowed.size * 32 < logits.size:
            raise EdgekitError(f"the grammar's mask knows {allowed.size * 32} tokens, the model {logits.size}")
        if self._greedy and not self._penalties.active and (allowed is None or _allows(allowed, best)):
            token = best
        else:
            token = self._choose(logits, allowed)
        choice = self._describe(logits, best, token) if self._top_logprobs is not None else Choice(token)
        self.accept(token)
        return choice

    def accept(self, token: int) -> None:
        """Count a token of the answer that was not chosen: the grammar left no other."""
        self._penalties.accept(token)

    def score(self, logits: Logits, token: int) -> Choice:
        """Say how likely a given token was: of a prompt, or one that the grammar forced. It is not counted.

        Raises:
            RunnerError: The logits hold NaN or infinity.
        """
        return self._describe(logits, self._best(logits), token)

    def _best(self, logits: Logits) -> int:
        if logits.shape != (self._vocab_size,):
            raise RunnerError(f"the model computed logits of shape {logits.shape}, not ({self._vocab_size},)")
        # argmax finds the first NaN where there is one, so one pass serves the check and the greedy choice.
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise RunnerError("the model computed logits that are not numbers", hint="check it: edgekit verify DIR")
        return best

    def _choose(self, logits: Logits, allowed: Mask | None) -> int:
        sampling = self._sampling
        logits = self._penalties.apply(logits)
        ids: Indices | None = None
        if allowed is not None:
            logits, ids = _restrict(logits, allowed)
        best = int(logits.argmax()) if logits.size else -1
        if best < 0 or logits[best] == -np.inf:
            raise EdgekitError(
                "none of the tokens that the grammar allows here is possible", hint="the grammar may be too narrow"
            )
        if self._greedy:
            return best if ids is None else int(ids[best])
        peak = logits[best]
        if 0 < sampling.top_k < logits.size:
            logits, ids = _pick(logits, ids, largest(logits, sampling.top_k))
        else:
            logits, ids = _drop_unlikely(logits, ids, peak - np.float32(self._spread(logits.size)))
        # Beside the best token the rest may underflow to 0, which is what a small temperature asks for.
        with np.errstate(under="ignore", over="ignore"):
            scores = logits - peak
            scores *= np.float32(1 / sampling.temperature)
            weights = np.exp(scores)
        if sampling.typical_p < 1:
            weights, ids = _pick(weights, ids, typical(scores, weights, sampling.typical_p))
        if sampling.top_p < 1:
            weights, ids = _pick(weights, ids, nucleus(weights, sampling.top_p))
        if sampling.min_p > 0:
            weights, ids = _pick(weights, ids, np.flatnonzero(weights >= sampling.min_p * float(weights.max())))
        index = draw(weights, self._random.random())
        return index if ids is None else int(ids[index])

    def _spread(self, size: int) -> float:
        """How far below the best logit one of `size` may be to matter."""
        spread = softmax_floor(size)
        if self._sampling.min_p > 0 and self._sampling.top_p == self._sampling.typical_p == 1:
            # No filter asks for the sum of all, and the last one drops these anyway.
            spread = min(spread, -math.log(self._sampling.min_p) + 1e-3)
        return spread * self._sampling.temperature

    def _describe(self, logits: Logits, best: int, token: int) -> Choice:
        normalizer = log_normalizer(logits, logits[best])
        top = [
            (other, float(logits[other]) - normalizer)
            for other in (likeliest(logits, self._top_logprobs) if self._top_logprobs else ())
        ]
        return Choice(token, float(logits[token]) - normalizer, tuple(top))


def _allows(allowed: Mask, token: int) -> bool:
    return bool(int(allowed[token >> 5]) >> (token & 31) & 1)


def _restrict(logits: Logits, allowed: Mask) -> tuple[Logits, Indices | None]:
    """What the mask allows: the logits of few tokens with their ids, or of all with -infinity among them."""
    size = logits.size
    octets = np.ascontiguousarray(allowed, dtype="<i4").view(np.uint8)[: (size + 7) // 8]
    bits = np.unpackbits(octets, count=size, bitorder="little").view(np.bool_)
    if np.count_nonzero(bits) <= size // 2:
        ids = np.flatnonzero(bits)
        return logits[ids], ids
    return np.minimum(logits, _LIMITS.take(octets, axis=0).ravel()[:size]), None


def _drop_unlikely(logits: Logits, ids: Indices | None, floor: np.float32) -> tuple[Logits, Indices | None]:
    likely = logits >= floor
    # Nothing is gained where most are likely.
    if np.count_nonzero(likely) > logits.size // 2:
        return logits, ids
    return _pick(logits, ids, np.flatnonzero(likely))


def _pick(values: Logits, ids: Indices | None, kept: Indices) -> tuple[Logits, Indices]:
    return values[kept], kept if ids is None else ids[kept]
