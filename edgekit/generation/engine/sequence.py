"""State of one sequence: its tokens, which of them the runner has yet to compute, and when it ends.

Of a step it needs only a slice of its tokens, draft tokens included, and the logits that came back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.grammar import Matcher
from edgekit.generation.model import TextModel
from edgekit.generation.output.output_text import OutputText
from edgekit.generation.sampling.sampler import SampledToken, Sampler
from edgekit.generation.sampling.verify import accept_drafts
from edgekit.generation.speculative.drafters import Drafter
from edgekit.generation.tools import ParserEvent, TextDelta
from edgekit.generation.types import FinishReason, LineLimits, TokenLogprob

__all__ = ["SequenceState"]

Logits = npt.NDArray[np.float32]

# Tokens per chunk when a prompt is scored: each one's logits are as wide as the vocabulary.
_MAX_SCORED_ROWS = 32


class SequenceState:
    """One of a request's choices.

    Args:
        model: The model.
        state: The request.
        index: Index of the choice.
        drafter: Proposes draft tokens; None turns speculative decoding off.
        context: Maximum tokens of prompt and completion together.

    Attributes:
        tokens: The prompt and the tokens generated since.
        slot: Its sequence slot; None while it waits for one.
        exact: Its logits must not depend on the rest of the batch, or never do.
        reason: The finish reason; None while it runs.
    """

    def __init__(
        self, model: TextModel, state: RequestState, index: int, drafter: Drafter | None, context: int
    ) -> None:
        request = state.request
        self.state = state
        self.index = index
        self.tokens = list(state.prompt)
        self.prompt_length = len(self.tokens)
        self.slot: int | None = None
        self.exact = request.sampling.repeatable or model.runner.limits.exact
        self.reason: FinishReason | None = None
        self.drafter = drafter
        self._model = model
        remaining = context - self.prompt_length
        self._max_tokens = remaining if request.max_tokens is None else min(remaining, request.max_tokens)
        self._sampler = Sampler(
            request.sampling.for_choice(index),
            vocab_size=model.runner.limits.vocab_size,
            prompt=state.prompt,
            top_logprobs=request.logprobs,
        )
        prepared = state.prepared
        self._matcher: Matcher | None = None if prepared.grammar is None else prepared.grammar.matcher()
        # A chat message is decoded by itself. A continued prompt is not, and structured output must not lose a
        # leading space that the grammar required.
        continued = bool(request.prompt) or request.turn == "continue" or request.response_format is not None
        continued = continued or request.infill is not None
        limits = request.line_limits or LineLimits()
        self._text = OutputText(
            model.tokenizer,
            request.stop,
            prepared.tool_format,
            prepared.parser(),
            continued=continued,
            min_indent=limits.min_indent,
        )
        self._end_tokens = model.eos_token_ids | prepared.end_tokens
        # Seconds from the first token after which the next line ends the output.
        self._seconds = limits.seconds
        self._first_token_at = 0.0
        self._logprobs: list[TokenLogprob] = []
        # Prompt tokens whose logprobs are known; the prompt's length if none were requested.
        self._scored = 0 if request.echo and request.logprobs is not None else self.prompt_length
        self._last_token_at = 0.0
        if request.echo and not self.scoring:
            self._echo()

    @property
    def generated(self) -> int:
        """Number of generated tokens."""
        return len(self.tokens) - self.prompt_length

    @property
    def can_share_prompt(self) -> bool:
        """Whether it can wait to reuse a prefix that another sequence is computing."""
        return self.state.request.cache_prompt and not self.scoring and self.generated == 0

    @property
    def scoring(self) -> bool:
        """Whether logprobs of prompt tokens are still to be computed."""
        return self._scored < self.prompt_length

    def next_chunk(self, start: int, limit: int) -> list[int]:
        """Return the tokens to prefill next.

        Args:
            start: Length of its slot.
            limit: Maximum number of tokens.
        """
        return self.tokens[start : start + (min(limit, _MAX_SCORED_ROWS) if self.scoring else limit)]

    def draft(self, limit: int) -> list[int]:
        """Return draft tokens that follow the last token; call it only where the next token is sampled.

        Args:
            limit: Maximum number of draft tokens.
        """
        # One less than may still be generated: the step also samples the token after the last accepted draft.
        limit = min(limit, self._max_tokens - self.generated - 1)
        if self.drafter is None or limit < 1:
            return []
        drafted = self.drafter.draft(self.tokens, limit)
        return drafted if self._matcher is None else drafted[: self._matcher.fits(drafted)]

    def process(self, start: int, logits: Logits, drafted: Sequence[int]) -> int:
        """Sample from the logits of a step that completed `tokens`, and verify its draft tokens.

        Args:
            start: Length of its slot before the step.
            logits: float32 `[rows, vocab]`; the last `len(drafted) + 1` follow the last token and each draft token.
            drafted: What `draft` returned.

        Returns:
            Number of accepted draft tokens.
        """
        if self.scoring:
            self._score(start, logits)
        if self._max_tokens == 0:
            self._end("length")
            return 0
        sampled = accept_drafts(
            self._sampler,
            logits[len(logits) - len(drafted) - 1 :],
            drafted,
            matcher=self._matcher,
            end_tokens=self._end_tokens,
            # Forced tokens have no logits, so no logprobs.
            fast_forward=self.state.request.logprobs is None,
        )
        accepted = 0
        for one, draft in zip(sampled, drafted, strict=False):
            if one.token != draft:
                break
            accepted += 1
        if drafted and self.drafter is not None:
            self.drafter.learn(len(drafted), accepted)
            self.state.accepted_tokens += accepted
            self.state.rejected_tokens += len(drafted) - accepted
        for number, one in enumerate(sampled, 1):
            # The grammar has consumed all of them, so its state applies to the last one only.
            self._append(one, last=number == len(sampled))
            if self.reason is not None:
                return accepted
        return accepted

    def process_prompt(self, start: int, logits: Logits) -> None:
        """Process the logits of a prefill chunk that is not the last."""
        if self.scoring:
            self._score(start, logits)

    def preempt(self) -> None:
        """Give up its slot and the drafter's; it is recomputed from its tokens in another slot later."""
        self.slot = None
        if self.drafter is not None:
            self.drafter.release()

    def close(self) -> None:
        """Release the drafter's resources and, if it did not end by itself, send its remaining text."""
        if self.drafter is not None:
            self.drafter.release()
        if self.reason is None:
            self._send(self._text.finish(), last=True)

    def _append(self, sampled: SampledToken, *, last: bool = True) -> None:
        """Append a generated token; `last` if it is the step's last one."""
        state = self.state
        state.completion_tokens += 1
        self._last_token_at = state.count_token(self._last_token_at)
        self._first_token_at = self._first_token_at or self._last_token_at
        self.tokens.append(sampled.token)
        if sampled.token in self._end_tokens:
            if state.request.echo and sampled.logprob is not None:
                # One row for each token: clients that score a prompt leave out what was generated by its number.
                self._logprobs.append(self._token_logprob(sampled.token, sampled.logprob, sampled.top))
            self._end("stop")
            return
        thinking = self._text.thinking
        if sampled.logprob is not None:
            self._logprobs.append(self._token_logprob(sampled.token, sampled.logprob, sampled.top))
        self._send(self._text.push(sampled.token))
        # The tag that opens the reasoning counts too, and so does the one that closes it.
        state.reasoning_tokens += thinking or self._text.thinking
        if self._text.stopped or (last and self._matcher is not None and self._matcher.complete):
            self._end("stop")
        elif self.generated >= self._max_tokens or self._late(sampled.token):
            self._end("length")

    def _late(self, token: int) -> bool:
        """Whether a token ends a line after the time for the output is over."""
        if self._seconds is None or self._last_token_at - self._first_token_at <= self._seconds:
            return False
        return b"\n" in self._model.token_bytes(token)

    def _end(self, reason: FinishReason) -> None:
        self._send(self._text.finish(), last=True)
        if self._text.stopped:
            reason = "stop"
            self.state.stopped(self.index, self._text.stop_string)
        self.reason = "tool_calls" if reason == "stop" and self._text.calls else reason

    def _send(self, pieces: Sequence[ParserEvent], *, last: bool = False) -> None:
        if pieces or last:
            logprobs, self._logprobs = self._logprobs, []
            self.state.send(self.index, pieces, logprobs)

    def _echo(self) -> None:
        """Send the prompt as the start of the output."""
        prompt = self.state.request.prompt or ""
        tokenizer = self._model.tokenizer
        # Of token ids, special tokens are shown as text, as they are in a prompt that is text.
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, visible=tokenizer.special_ids)
        self._send([TextDelta(text)])

    def _score(self, start: int, logits: Logits) -> None:
        """Record logprobs of prompt tokens; row i of `logits` follows token `start + i`."""
        if self._scored == 0:
            self._logprobs.append(TokenLogprob(self.tokens[0], self._model.token_bytes(self.tokens[0]), None))
            self._scored = 1
        while self._scored < self.prompt_length and self._scored - 1 - start < len(logits):
            scored = self._sampler.score(logits[self._scored - 1 - start], self.tokens[self._scored])
            self._logprobs.append(self._token_logprob(scored.token, scored.logprob, scored.top))
            self._scored += 1
        if not self.scoring:
            self._echo()

    def _token_logprob(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        data = self._model.token_bytes
        return TokenLogprob(token, data(token), logprob, tuple((other, data(other), value) for other, value in top))
