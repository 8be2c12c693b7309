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
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    left_out_messages: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Time spent on one request, in seconds.

    Attributes:
        queue_s: Submission to the first step.
        prefill_s: First step to the first token.
        decode_s: First token to the last.
        slowest_token_s: Longest inter-token latency within one choice.
        steps: Forward passes after the prompt.
        kv_bytes: Largest KV cache of one choice, in bytes.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    slowest_token_s: float = 0.0
    steps: int = 0
    kv_bytes: int = 0

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
