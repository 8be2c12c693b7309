"""Samples the next token from logits, in numpy.

Order: grammar mask and penalties (see penalties.py), then top_k, temperature, typical_p, top_p, min_p, and one draw.
That is llama.cpp's default chain, except that temperature comes where Ollama, vLLM and Transformers have it: before the
filters on probabilities, so that `top_p` refers to the distribution that is drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, RunnerError
from edgekit.generation.sampling.filters import draw, largest, nucleus, softmax_floor, typical
from edgekit.generation.sampling.logprobs import log_normalizer, top_tokens
from edgekit.generation.sampling.penalties import Penalties
from edgekit.generation.types import Sampling

__all__ = ["SampledToken", "Sampler"]

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]

# For each byte of a mask, the upper bounds of its eight tokens' logits: infinity if allowed, else -infinity.
_LIMITS: Logits = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, np.inf, -np.inf
).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sampled token with its logprob.

    Attributes:
        logprob: From the raw logits; None unless requested.
        top: The most likely tokens with their logprobs, best first; not necessarily including this one.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Samples the tokens of one sequence.

    A seeded sampler draws exactly once per token, whatever the filters leave, so the same logits give the same tokens,
    one at a time or several per step (speculative decoding).

    Args:
        sampling: Sampling parameters.
        vocab_size: Width of a row of logits.
        prompt: The prompt's tokens, for the repetition penalty.
        top_logprobs: Number of top tokens to report with each token; None reports no logprobs at all.

    Raises:
        RequestError: `logit_bias` names a token outside the vocabulary.
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
        # A seed may be negative in the OpenAI API; numpy requires a non-negative one.
        self._random = np.random.Generator(np.random.PCG64(None if seed is None else seed & (2**64 - 1)))

    def sample(self, logits: Logits, allowed: Mask | None = None) -> SampledToken:
        """Sample a token and count it for the penalties.

        Args:
            logits: float32 `[vocab]`; not modified.
            allowed: Bit mask of allowed tokens: int32 `[ceil(vocab / 32)]`, token i is bit i % 32 of word i // 32. None
                allows all.

        Raises:
            RunnerError: The logits contain NaN or infinity, or every token has probability 0.
            EdgekitError: Every allowed token has probability 0.
        """
        best = self._best(logits)
        if allowed is not None and allowed.size * 32 < logits.size:
            raise EdgekitError(f"the grammar's mask has {allowed.size * 32} tokens, the model {logits.size}")
        if self._greedy and not self._penalties.active and (allowed is None or _allows(allowed, best)):
            token = best
        else:
            token = self._sample(logits, allowed)
        sampled = self._with_logprobs(logits, best, token) if self._top_logprobs is not None else SampledToken(token)
        self.accept(token)
        return sampled

    def accept(self, token: int) -> None:
        """Count a token for the penalties that was not sampled but forced by the grammar."""
        self._penalties.accept(token)

    def score(self, logits: Logits, token: int) -> SampledToken:
        """Return the logprobs of a given token, such as a prompt's. It is not counted for the penalties.

        Raises:
            RunnerError: The logits contain NaN or infinity.
        """
        return self._with_logprobs(logits, self._best(logits), token)

    def _best(self, logits: Logits) -> int:
        if logits.shape != (self._vocab_size,):
            raise RunnerError(f"the model's logits have shape {logits.shape}, not ({self._vocab_size},)")
        # argmax returns the first NaN if there is one, so one pass does both the check and greedy sampling.
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise RunnerError("the model's logits contain NaN or infinity", hint="check the bundle: edgekit verify DIR")
        return best

    def _sample(self, logits: Logits, allowed: Mask | None) -> int:
        sampling = self._sampling
        logits = self._penalties.apply(logits)
        ids: Indices | None = None
        if allowed is not None:
            logits, ids = _restrict(logits, allowed)
        best = int(logits.argmax()) if logits.size else -1
        if best < 0 or logits[best] == -np.inf:
            raise EdgekitError(
                "every token that the grammar allows here has probability 0", hint="the grammar may be too narrow"
            )
        if self._greedy:
            return best if ids is None else int(ids[best])
        peak = logits[best]
        if 0 < sampling.top_k < logits.size:
            logits, ids = _pick(logits, ids, largest(logits, sampling.top_k))
        else:
            logits, ids = _drop_unlikely(logits, ids, peak - np.float32(self._spread(logits.size)))
        # Other tokens may underflow to 0, which is correct for a low temperature.
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
        """The distance below the best logit beyond which logits are negligible."""
        spread = softmax_floor(size)
        if self._sampling.min_p > 0 and self._sampling.top_p == self._sampling.typical_p == 1:
            # No filter needs the total, and min_p drops these anyway.
            spread = min(spread, -math.log(self._sampling.min_p) + 1e-3)
        return spread * self._sampling.temperature

    def _with_logprobs(self, logits: Logits, best: int, token: int) -> SampledToken:
        normalizer = log_normalizer(logits, logits[best])
        top = [
            (other, float(logits[other]) - normalizer)
            for other in (top_tokens(logits, self._top_logprobs) if self._top_logprobs else ())
        ]
        return SampledToken(token, float(logits[token]) - normalizer, tuple(top))


def _allows(allowed: Mask, token: int) -> bool:
    return bool(int(allowed[token >> 5]) >> (token & 31) & 1)


def _restrict(logits: Logits, allowed: Mask) -> tuple[Logits, Indices | None]:
    """Apply the mask: the logits of a few allowed tokens with their ids, or all logits with the others at -infinity."""
    size = logits.size
    octets = np.ascontiguousarray(allowed, dtype="<i4").view(np.uint8)[: (size + 7) // 8]
    bits = np.unpackbits(octets, count=size, bitorder="little").view(np.bool_)
    if np.count_nonzero(bits) <= size // 2:
        ids = np.flatnonzero(bits)
        return logits[ids], ids
    return np.minimum(logits, _LIMITS.take(octets, axis=0).ravel()[:size]), None


def _drop_unlikely(logits: Logits, ids: Indices | None, floor: np.float32) -> tuple[Logits, Indices | None]:
    likely = logits >= floor
    # Not worth a copy if it keeps more than half.
    if np.count_nonzero(likely) > logits.size // 2:
        return logits, ids
    return _pick(logits, ids, np.flatnonzero(likely))


def _pick(values: Logits, ids: Indices | None, kept: Indices) -> tuple[Logits, Indices]:
    return values[kept], kept if ids is None else ids[kept]
