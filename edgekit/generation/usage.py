"""Token counts and timings of a finished request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Timings", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, as the OpenAI API defines them.

    Attributes:
        cached_tokens: Prompt tokens whose KV cache was reused.
        accepted_tokens: Completion tokens that were accepted draft tokens.
        rejected_tokens: Rejected draft tokens; not part of any other count.
        left_out_messages: Messages dropped by truncation.
        reasoning_tokens: Completion tokens of the model's reasoning, its tags included.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    left_out_messages: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Time spent on one request, in seconds, and energy.

    Attributes:
        queue_s: Submission to the first step.
        prefill_s: First step to the first token.
        decode_s: First token to the last.
        slowest_token_s: Longest inter-token latency within one choice.
        steps: Forward passes after the prompt.
        kv_bytes: Largest KV cache of one choice, in bytes.
        prefill_j: Energy of its part of the steps until the first token, in joules; None if not measured.
        decode_j: The same of the steps after it.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    slowest_token_s: float = 0.0
    steps: int = 0
    kv_bytes: int = 0
    prefill_j: float | None = None
    decode_j: float | None = None

    @property
    def first_token_s(self) -> float:
        """Submission to the first token."""
        return self.queue_s + self.prefill_s

    def as_rates(self, usage: Usage) -> Mapping[str, float]:
        """Return prompt and decode tokens per second; a rate that was not measured is absent."""
        rates = {}
        computed = usage.prompt_tokens - usage.cached_tokens
        if self.prefill_s > 0 and computed > 0:
            rates["prompt_tokens_per_s"] = computed / self.prefill_s
        # Prefill yields the first token, decoding the others.
        if self.decode_s > 0 and usage.completion_tokens > 1:
            rates["decode_tokens_per_s"] = (usage.completion_tokens - 1) / self.decode_s
        return rates

    def as_energy(self, usage: Usage) -> Mapping[str, float]:
        """Return the energy in joules, and that of a token; empty if it was not measured."""
        if self.prefill_j is None or self.decode_j is None:
            return {}
        energy = {"prefill_j": self.prefill_j, "decode_j": self.decode_j}
        # As for the speed: decoding yields all tokens but the first.
        if self.decode_j > 0 and usage.completion_tokens > 1:
            energy["joules_per_token"] = self.decode_j / (usage.completion_tokens - 1)
        return energy
