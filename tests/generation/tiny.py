"""A small, deterministic runner and the text model around it, for what does not depend on a real model's weights.

`EchoRunner` keeps real state: the tokens of its slot. Its logits name the next byte of a fixed answer, so that every
token, truncation and chunk shows in the text that comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from edgekit.errors import RunnerError
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer
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
    """Answers each prompt with `answer`, then ends; the prompt's own tokens are checked to be there.

    Args:
        answer: Text of every answer.
        before_step: Called at the start of each step with its number; it may sleep or raise.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: str,
        *,
        context_length: int = 1024,
        max_chunk: int = 16,
        before_step: Callable[[int], object] | None = None,
    ) -> None:
        self._answer = [*tokenizer.encode(answer, obey_special=False), *tokenizer.encode(SPECIAL[2])]
        self._limits = Limits(context_length, 1, max_chunk, tokenizer.vocab_size, 0)
        self._tokens: list[int] = []
        self._prompt_length = 0
        self._before_step = before_step
        self._owner: int | None = None
        self.steps = 0
        self.closed = False

    @property
    def limits(self) -> Limits:
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Append, and point at the next token of the answer."""
        self._check_thread()
        assert not self.closed
        (chunk,) = chunks
        assert chunk.slot == 0
        assert 1 <= len(chunk.tokens) <= self._limits.max_chunk
        self.steps += 1
        if self._before_step:
            self._before_step(self.steps)
        if len(self._tokens) + len(chunk.tokens) > self._limits.context_length:
            raise RunnerError("the slot is full")
        answering = self._prompt_length and len(self._tokens) >= self._prompt_length
        if answering:
            expected = self._answer[len(self._tokens) - self._prompt_length]
            assert list(chunk.tokens) == [expected], "a token was lost or made up"
        self._tokens += chunk.tokens
        if chunk.logits == "none":
            return [np.zeros((0, self._limits.vocab_size), np.float32)]
        if not answering:
            self._prompt_length = len(self._tokens)
        logits = np.full((1, self._limits.vocab_size), -30.0, np.float32)
        logits[0, self._answer[len(self._tokens) - self._prompt_length]] = 30.0
        return [logits]

    def length(self, slot: int) -> int:
        assert slot == 0
        return len(self._tokens)

    def truncate(self, slot: int, length: int) -> None:
        self._check_thread()
        assert slot == 0
        if length > len(self._tokens):
            raise RunnerError("the slot holds fewer tokens")
        del self._tokens[length:]
        if length == 0:
            self._prompt_length = 0

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        raise NotImplementedError

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        raise NotImplementedError

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
    before_step: Callable[[int], object] | None = None,
) -> TextModel:
    """A text model over an `EchoRunner`."""
    tokenizer = byte_tokenizer()
    runner = EchoRunner(tokenizer, answer, context_length=context_length, max_chunk=max_chunk, before_step=before_step)
    return TextModel(
        info=ModelInfo("echo", 1_700_000_000, context_length),
        runner=runner,
        tokenizer=tokenizer,
        template=ChatTemplate(CHATML),
        eos_token_ids=frozenset(tokenizer.encode(SPECIAL[2])),
    )
