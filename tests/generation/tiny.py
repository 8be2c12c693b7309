"""A small, deterministic runner and a `TextModel` over it, for tests that need no real weights.

`EchoRunner` keeps real state: the tokens of its slots. Its logits point at the next byte of a fixed answer, so that
every token, truncation and chunk shows in the output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from edgekit.errors import RunnerError
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.runners import base
from edgekit.runners.base import Chunk, Limits
from tests.models import CHATML, SPECIAL

__all__ = ["EchoRunner", "byte_tokenizer", "echo_model"]


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and the three special tokens of ChatML after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return Tokenizer(backend)


class EchoRunner:
    """Answers each prompt with `answer`, then ends.

    Its next token depends only on the slot's tokens, as with a real model: the answer so far is what follows the last
    start of an assistant turn. A lost or invented token shows at once.

    Args:
        answer: The text of every answer.
        before_step: Called with the step's number before each step; may sleep or raise.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: str,
        *,
        context_length: int = 1024,
        max_chunk: int = 16,
        sequence_slots: int = 1,
        before_step: Callable[[int], object] | None = None,
    ) -> None:
        self._answer = [*tokenizer.encode(answer, obey_special=False), *tokenizer.encode(SPECIAL[2])]
        self._opening = tokenizer.encode(f"{SPECIAL[1]}assistant\n")
        self._limits = Limits(context_length, sequence_slots, max_chunk, tokenizer.vocab_size, 8)
        self.slots: list[list[int]] = [[] for _ in range(sequence_slots)]
        self._before_step = before_step
        self._owner: int | None = None
        self.steps = 0
        self.tokens = 0
        self.widest = 0
        self.closed = False

    @property
    def backend(self) -> base.Backend:
        return base.Backend("none")

    @property
    def limits(self) -> Limits:
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Append, and point at the next token of the answer."""
        self._check_thread()
        assert not self.closed
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        self.steps += 1
        self.widest = max(self.widest, len(chunks))
        if self._before_step:
            self._before_step(self.steps)
        for chunk in chunks:
            assert 1 <= len(chunk.tokens) <= self._limits.max_chunk
            if len(self.slots[chunk.slot]) + len(chunk.tokens) > self._limits.context_length:
                raise RunnerError("the slot is full")
        return [self._run(chunk) for chunk in chunks]

    def _run(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        tokens = self.slots[chunk.slot]
        answered = self._answered(tokens)
        assert answered is None or answered == self._answer[: len(answered)] or self._answer[-1] in answered, (
            "a token of another sequence"
        )
        rows = []
        for token in chunk.tokens:
            tokens.append(token)
            self.tokens += 1
            rows.append(self._logits(tokens))
        wanted = {"none": rows[:0], "last": rows[-1:], "all": rows}[chunk.logits]
        return np.array(wanted, np.float32).reshape(-1, self._limits.vocab_size)

    def _answered(self, tokens: list[int]) -> list[int] | None:
        """The answer's tokens so far; None before it begins."""
        size = len(self._opening)
        for end in range(len(tokens), size - 1, -1):
            if tokens[end - size : end] == self._opening:
                return tokens[end:]
        return None

    def _logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        logits = np.full(self._limits.vocab_size, -30.0, np.float32)
        answered = self._answered(tokens)
        if answered is not None:
            # After a rejected draft token anything may follow.
            right = answered == self._answer[: len(answered)]
            logits[self._answer[len(answered)] if right and len(answered) < len(self._answer) else 0] = 30.0
        return logits

    def length(self, slot: int) -> int:
        return len(self.slots[slot])

    def truncate(self, slot: int, length: int) -> None:
        self._check_thread()
        if length > len(self.slots[slot]):
            raise RunnerError("the slot holds fewer tokens")
        del self.slots[slot][length:]

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        return np.array(self.slots[slot][start:stop], np.int64).tobytes()

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        assert start == len(self.slots[slot])
        self.slots[slot] += np.frombuffer(data, np.int64).tolist()
        return len(self.slots[slot])

    def close(self) -> None:
        self.closed = True

    def _check_thread(self) -> None:
        thread = threading.get_ident()
        assert self._owner in {None, thread}, "a runner is used by one thread"
        self._owner = thread


def echo_model(
    answer: str = "Paris is the capital of France.",
    *,
    context_length: int = 1024,
    max_chunk: int = 16,
    sequence_slots: int = 1,
    before_step: Callable[[int], object] | None = None,
) -> TextModel:
    """A text model over an `EchoRunner`."""
    tokenizer = byte_tokenizer()
    runner = EchoRunner(
        tokenizer,
        answer,
        context_length=context_length,
        max_chunk=max_chunk,
        sequence_slots=sequence_slots,
        before_step=before_step,
    )
    eos = frozenset(tokenizer.encode(SPECIAL[2]))
    return TextModel(
        info=ModelInfo("echo", 1_700_000_000, context_length),
        runner=runner,
        tokenizer=tokenizer,
        template=ChatTemplate(CHATML),
        eos_token_ids=eos,
        grammars=GrammarCompiler(tokenizer, vocab_size=runner.limits.vocab_size, eos_token_ids=eos),
    )
