"""A model without weights, and a minimal generation loop over it, with or without drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.sampling.verify import accept_drafts
from edgekit.generation.speculative.draft_model import DraftModel
from edgekit.generation.speculative.drafters import Drafter, LookupOrModel
from edgekit.runners.base import Backend, Chunk, Limits

__all__ = ["Answer", "HashRunner", "answer", "copying", "hashed", "smollm2_cost"]

Model = Callable[[Sequence[int]], npt.NDArray[np.float32]]


def hashed(vocab: int, *, sharpness: float = 2.0, salt: int = 0) -> Model:
    """Logits that depend only on the last two tokens."""

    def model(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        random = np.random.default_rng([salt, *tokens[-2:]])
        return random.normal(0, sharpness, vocab).astype(np.float32)

    return model


def copying(text: Sequence[int], vocab: int, *, prompt: int) -> Model:
    """A model that, after a prompt of this length, repeats `text` with near certainty."""

    def model(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = np.zeros(vocab, np.float32)
        logits[text[(len(tokens) - prompt) % len(text)]] = 20.0
        return logits

    return model


def smollm2_cost(drafted: int) -> float:
    """Milliseconds of a step that verifies so many draft tokens: SmolLM2-135M, exact, on two cores."""
    return float(np.interp(drafted + 1, [1, 4, 8, 16], [8.3, 9.9, 13.4, 24.8]))


@dataclass
class Answer:
    """The output, and what it took."""

    tokens: list[int] = field(default_factory=list)
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    cost: float = 0.0


def answer(
    model: Model,
    prompt: Sequence[int],
    count: int,
    *,
    sampler: Sampler,
    drafter: Drafter | None = None,
    cost: Callable[[int], float] = smollm2_cost,
) -> Answer:
    """Generate `count` tokens."""
    result, tokens = Answer(), list(prompt)
    while len(result.tokens) < count:
        limit = count - len(result.tokens) - 1
        model_of = drafter._model if isinstance(drafter, LookupOrModel) else drafter
        if isinstance(model_of, DraftModel):
            model_of._runner.begin_step()
        drafted = drafter.draft(tokens, limit) if drafter else []
        assert len(drafted) <= limit
        logits = np.stack([model([*tokens, *drafted[:step]]) for step in range(len(drafted) + 1)])
        choices = accept_drafts(sampler, logits, drafted)
        accepted = len(choices) - 1
        if drafter and drafted:
            drafter.learn(len(drafted), accepted)
        tokens += [choice.token for choice in choices]
        result.tokens += [choice.token for choice in choices]
        result.passes += 1
        result.drafted += len(drafted)
        result.accepted += accepted
        result.cost += cost(len(drafted))
    return result


class HashRunner:
    """A runner over such a model; it keeps the tokens of its slots, and fails from step `fails_at` on."""

    def __init__(self, model: Model, vocab: int, *, context_length: int = 4096, max_chunk: int = 16) -> None:
        self._model = model
        self.slots: dict[int, list[int]] = {0: [], 1: []}
        self._limits = Limits(context_length, 2, max_chunk, vocab, 0)
        self.steps = 0
        self.fails_at: int | None = None

    @property
    def backend(self) -> Backend:
        return Backend("none")

    @property
    def limits(self) -> Limits:
        return self._limits

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        self.steps += 1
        if self.fails_at is not None and self.steps >= self.fails_at:
            raise RunnerError("out of memory")
        results = []
        for chunk in chunks:
            tokens = self.slots[chunk.slot]
            assert 1 <= len(chunk.tokens) <= self._limits.max_chunk
            assert len(tokens) + len(chunk.tokens) <= self._limits.context_length
            tokens += chunk.tokens
            rows = [self._model(tokens)] if chunk.logits == "last" else []
            results.append(np.array(rows, np.float32).reshape(len(rows), self._limits.vocab_size))
        return results

    def length(self, slot: int) -> int:
        return len(self.slots[slot])

    def truncate(self, slot: int, length: int) -> None:
        assert length <= len(self.slots[slot])
        del self.slots[slot][length:]

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        raise NotImplementedError

    def write_kv(self, slot: int, start: int, data: bytes | memoryview[int]) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass
