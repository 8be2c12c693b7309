"""One answer in the making: which tokens it has, which of them the runner has yet to take, and when it is over.

Everything it needs of a step is a slice of its tokens, some of them guessed, and the logits that came back. It knows no
queue, no slots and no other sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import numpy as np
import numpy.typing as npt

from edgekit.generation.answer_text import AnswerText
from edgekit.generation.drafting import Drafter
from edgekit.generation.grammar import Matcher
from edgekit.generation.model import TextModel
from edgekit.generation.request import FinishReason, TokenLogprob
from edgekit.generation.sampling import Choice, Sampler
from edgekit.generation.ticket import Ticket
from edgekit.generation.tools import Piece, TextPiece
from edgekit.generation.verify import accept_drafts

__all__ = ["Sequence"]

Logits = npt.NDArray[np.float32]

# Logits of all of a prompt's tokens are as wide as the vocabulary each: few at a time.
_SCORED = 32


class Sequence:
    """One of a request's answers.

    Args:
        model: Whose tokens these are.
        ticket: The request.
        index: Which of its answers.
        drafter: Guesses tokens; None guesses none.
        context: Tokens that prompt and answer may have together.

    Attributes:
        tokens: The prompt and what was decided since.
        slot: Where its KV cache lies; None while it waits for a slot.
        exact: Its logits must not depend on what else runs, or do not anyway.
        reason: Why it ended; None while it has not.
    """

    def __init__(self, model: TextModel, ticket: Ticket, index: int, drafter: Drafter | None, context: int) -> None:
        request = ticket.request
        self.ticket = ticket
        self.index = index
        self.tokens = list(ticket.prompt)
        self.prompt_length = len(self.tokens)
        self.slot: int | None = None
        self.exact = request.sampling.repeatable or model.runner.limits.exact
        self.reason: FinishReason | None = None
        self.drafter = drafter
        self._model = model
        room = context - self.prompt_length
        self._most = room if request.max_tokens is None else min(room, request.max_tokens)
        self._sampler = Sampler(
            request.sampling.for_answer(index),
            vocab_size=model.runner.limits.vocab_size,
            prompt=ticket.prompt,
            top_logprobs=request.logprobs,
        )
        self._matcher: Matcher | None = None if ticket.grammar is None else ticket.grammar.matcher()
        # A chat's message stands alone. What continues a prompt does not; nor may a form lose what it was held to.
        continued = bool(request.prompt) or request.response_format is not None
        self._text = AnswerText(model.tokenizer, request.stop, ticket.tools, ticket.parser(), continued=continued)
        self._logprobs: list[TokenLogprob] = []
        # Prompt tokens whose log probabilities are known; beyond the prompt if none are wanted.
        self._scored = 0 if request.echo and request.logprobs is not None else self.prompt_length
        self._last_token_at = 0.0
        if request.echo and not self.scoring:
            self._echo()

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def waiting_alike(self) -> bool:
        """Whether it may wait for another answer's prompt that begins like its own, to share it."""
        return self.ticket.request.cache_prompt and not self.scoring and self.made == 0

    @property
    def scoring(self) -> bool:
        """Whether its prompt's own logits are wanted, all of them."""
        return self._scored < self.prompt_length

    def piece(self, held: int, most: int) -> list[int]:
        """The tokens that the runner is to take next, at most `most`.

        Args:
            held: Tokens that its slot holds.
            most: A step's limit.
        """
        return self.tokens[held : held + (min(most, _SCORED) if self.scoring else most)]

    def draft(self, most: int) -> list[int]:
        """Guess what follows the last token; only where that is what is to be decided next.

        Args:
            most: Tokens there is room for.
        """
        # One less than what may still come: the token after the last guess is chosen in the same step.
        most = min(most, self._most - self.made - 1)
        if self.drafter is None or most < 1:
            return []
        guess = self.drafter.draft(self.tokens, most)
        return guess if self._matcher is None else guess[: self._matcher.fits(guess)]

    def take(self, held: int, logits: Logits, drafted: Ordered[int]) -> int:
        """Take what a step computed.

        Args:
            held: Tokens the slot held before the step that brought all of `tokens`, and `drafted` after them.
            logits: float32 `[rows, vocab]`, the last `len(drafted) + 1` of which follow the last token and each guess.
            drafted: What `draft` returned.

        Returns:
            How many of `drafted` were right.
        """
        if self.scoring:
            self._score(held, logits)
        if self._most == 0:
            self._end("length")
            return 0
        choices = accept_drafts(
            self._sampler,
            logits[len(logits) - len(drafted) - 1 :],
            drafted,
            matcher=self._matcher,
            end_tokens=self._model.eos_token_ids,
            # Their log probabilities would be of nothing: no logits were computed for them.
            fast_forward=self.ticket.request.logprobs is None,
        )
        right = 0
        for choice, guess in zip(choices, drafted, strict=False):
            if choice.token != guess:
                break
            right += 1
        if drafted and self.drafter is not None:
            self.drafter.learn(len(drafted), right)
            self.ticket.accepted_tokens += right
            self.ticket.rejected_tokens += len(drafted) - right
        for place, choice in enumerate(choices, 1):
            # The grammar has taken all of them: where it stands says something of the last one only.
            self._push(choice, latest=place == len(choices))
            if self.reason is not None:
                return right
        return right

    def take_prompt(self, held: int, logits: Logits) -> None:
        """Take the logits of a piece of the prompt that is not its last."""
        if self.scoring:
            self._score(held, logits)

    def lose_slot(self) -> None:
        """Its KV cache is gone, the drafter's too; it goes on from its tokens once it has a slot again."""
        self.slot = None
        if self.drafter is not None:
            self.drafter.release()

    def close(self) -> None:
        """Send what was kept back if it ends from outside, and free what the drafter holds."""
        if self.drafter is not None:
            self.drafter.release()
        if self.reason is None:
            self._send(self._text.finish(), last=True)

    def _push(self, choice: Choice, *, latest: bool = True) -> None:
        """A token of the answer is decided; `latest` if no further one is yet."""
        ticket = self.ticket
        ticket.completion_tokens += 1
        self._last_token_at = ticket.token(self._last_token_at)
        self.tokens.append(choice.token)
        if choice.token in self._model.eos_token_ids:
            self._end("stop")
            return
        if choice.logprob is not None:
            self._logprobs.append(self._described(choice.token, choice.logprob, choice.top))
        self._send(self._text.push(choice.token))
        if self._text.stopped or (latest and self._matcher is not None and self._matcher.complete):
            self._end("stop")
        elif self.made >= self._most:
            self._end("length")

    def _end(self, reason: FinishReason) -> None:
        self._send(self._text.finish(), last=True)
        if self._text.stopped:
            reason = "stop"
        self.reason = "tool_calls" if reason == "stop" and self._text.calls else reason

    def _send(self, pieces: Ordered[Piece], *, last: bool = False) -> None:
        if pieces or last:
            logprobs, self._logprobs = self._logprobs, []
            self.ticket.send(self.index, pieces, logprobs)

    def _echo(self) -> None:
        """The prompt is the beginning of the answer."""
        self._send([TextPiece(self.ticket.request.prompt or "")])

    def _score(self, held: int, logits: Logits) -> None:
        """Log probabilities of the prompt's tokens; row i of `logits` follows token `held + i`."""
        if self._scored == 0:
            self._logprobs.append(TokenLogprob(self.tokens[0], self._model.spell(self.tokens[0]), None))
            self._scored = 1
        while self._scored < self.prompt_length and self._scored - 1 - held < len(logits):
            choice = self._sampler.score(logits[self._scored - 1 - held], self.tokens[self._scored])
            self._logprobs.append(self._described(choice.token, choice.logprob, choice.top))
            self._scored += 1
        if not self.scoring:
            self._echo()

    def _described(self, token: int, logprob: float | None, top: Ordered[tuple[int, float]]) -> TokenLogprob:
        spell = self._model.spell
        return TokenLogprob(token, spell(token), logprob, tuple((other, spell(other), value) for other, value in top))
