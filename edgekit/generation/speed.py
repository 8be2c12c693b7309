"""Measures a model's speed: prompt and decode tokens per second, time to the first token, energy per token.

Requests run on an `Engine`, as the daemon's do, so that sampling and detokenizing are measured too. Speculative
decoding and the prefix cache are off: what they gain depends on the text, and a prompt that repeats would gain most.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgekit.bundle.bundle import Bundle
from edgekit.errors import ConfigError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.first_load import check_first_load
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.prepared import PreparedRequest
from edgekit.generation.types import ChatRequest, Event, Failure, Finished
from edgekit.jetson.energy import EnergyMeter
from edgekit.runners.base import Runner

__all__ = ["LoadedModel", "Round", "Workload", "load_for_speed", "median", "rounds"]

# Token ids drawn at random would be text that no model was trained on, and that no tokenizer yields.
_TEXT = (
    "The river rises in the hills north of the town, where rain falls on most days of the year. For two centuries its "
    "water drove mills, and the names of the streets still tell which: Corn Street, Fulling Lane, the Tannery. In 1871 "
    "a railway came, and the goods that barges had carried for three days went to the coast in two hours. The mills "
    "closed one after the other. What remained were the weirs, the long brick buildings, and a habit of meeting at the "
    "bridge on Saturdays, when the market is held. Today a small turbine in the lowest weir supplies about 400 houses; "
    "its operator publishes the output every hour, and schoolchildren come to read the meters. Asked whether the old "
    "wheels were more efficient, she laughs and says that no one ever measured them. "
)


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a round.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        decode_tokens: Tokens decoded after it, the first of which the prompt yields.
        streams: Also decode so many answers at the same time; 1 does not.
    """

    prompt_tokens: int = 512
    decode_tokens: int = 128
    streams: int = 1

    @property
    def mean_context(self) -> int:
        """Tokens in the KV cache in a decode step, on average."""
        return self.prompt_tokens + self.decode_tokens // 2

    def check(self, context_length: int) -> None:
        """Check that it fits a context.

        Raises:
            ConfigError: It does not.
        """
        needed = self.prompt_tokens + self.decode_tokens
        if needed > context_length:
            raise ConfigError(
                f"{self.prompt_tokens} + {self.decode_tokens} tokens do not fit the context of {context_length}",
                hint="give a shorter prompt, or decode fewer tokens",
            )


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of a round, or medians of several; None was not measured.

    Attributes:
        prompt_tokens_per_s: Prompt tokens per second.
        decode_tokens_per_s: Decoded tokens per second, of one answer alone.
        first_token_s: Seconds from the request to its first token.
        streams_tokens_per_s: Decoded tokens per second of all streams together, while all of them decode.
        prompt_joules_per_token: Energy of a prompt token.
        joules_per_token: Energy of a decoded token, of one answer alone.
    """

    prompt_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    first_token_s: float | None
    streams_tokens_per_s: float | None = None
    prompt_joules_per_token: float | None = None
    joules_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and how long it took.

    Attributes:
        model: The model; the caller closes it.
        load_s: Seconds, with a first step, without the self-test.
        self_test_s: Seconds of the bundle's self-test, which runs at the first load only.
    """

    model: TextModel
    load_s: float
    self_test_s: float


def load_for_speed(
    bundle: Bundle,
    *,
    context_length: int | None = None,
    runner: str = "auto",
    threads: int | None = None,
    parallel: int = 1,
) -> LoadedModel:
    """Load a bundle as the daemon does, on the runner that it would choose.

    Args:
        bundle: The bundle, checked.
        context_length: As for `load_model`.
        runner: As for `load_model`.
        threads: As for `load_model`.
        parallel: As for `load_model`.

    Raises:
        EdgekitError: As `load_model`.
    """
    tested_s = 0.0

    def accept(loaded: Runner) -> None:
        nonlocal tested_s
        begun = time.perf_counter()
        try:
            check_first_load(bundle, loaded)
        finally:
            tested_s += time.perf_counter() - begun

    begun = time.perf_counter()
    model = load_model(
        bundle, context_length=context_length, runner=runner, threads=threads, parallel=parallel, accept=accept
    )
    return LoadedModel(model, time.perf_counter() - begun - tested_s, tested_s)


def rounds(model: TextModel, workload: Workload, count: int, *, meter: EnergyMeter | None = None) -> Iterator[Round]:
    """Measure `count` rounds; before the first one, one that is not counted warms up.

    Args:
        model: Not used elsewhere meanwhile.
        workload: The work of each round.
        count: Number of rounds.
        meter: Measures energy; None reports none.

    Raises:
        ConfigError: The workload does not fit the model's context.
        EdgekitError: A step failed.
    """
    workload.check(min(model.info.context_length, model.runner.limits.context_length))
    # No token ends an answer, so that all are of the same length.
    endless = replace(model, eos_token_ids=frozenset(), draft=None)
    engine = Engine(endless, speculation=False, meter=meter)
    prompt = prompt_of(model.tokenizer, workload.prompt_tokens)
    for at in range(count + 1):
        found = _round(engine, prompt, workload)
        if at > 0:
            yield found


def prompt_of(tokenizer: Tokenizer, count: int) -> list[int]:
    """Return so many tokens of English text, with what the tokenizer puts in front of a prompt."""
    text, number = "", 0
    while True:
        number += 1
        text += f"{number}. {_TEXT}\n"
        # At least one token for every sixteen characters: in prose no tokenizer has so many in one.
        if len(text) < 16 * count and number < 1 << 16:
            continue
        tokens = tokenizer.encode_text(text)
        if len(tokens) >= count:
            return tokens[:count]


def median(measured: Sequence[Round]) -> Round:
    """Return the median of each figure; None where a round lacks it.

    Args:
        measured: At least one round.
    """

    def middle(figure: Callable[[Round], float | None]) -> float | None:
        values = [value for one in measured if (value := figure(one)) is not None]
        return statistics.median(values) if len(values) == len(measured) else None

    return Round(
        prompt_tokens_per_s=middle(lambda one: one.prompt_tokens_per_s),
        decode_tokens_per_s=middle(lambda one: one.decode_tokens_per_s),
        first_token_s=middle(lambda one: one.first_token_s),
        streams_tokens_per_s=middle(lambda one: one.streams_tokens_per_s),
        prompt_joules_per_token=middle(lambda one: one.prompt_joules_per_token),
        joules_per_token=middle(lambda one: one.joules_per_token),
    )


def _round(engine: Engine, prompt: Sequence[int], workload: Workload) -> Round:
    (alone,) = _answers(engine, prompt, workload.decode_tokens, 1)
    while not alone.state.done:
        engine.step()
    finished = alone.finished()
    rates, energy = finished.timings.as_rates(finished.usage), finished.timings.as_energy(finished.usage)
    return Round(
        prompt_tokens_per_s=rates.get("prompt_tokens_per_s"),
        decode_tokens_per_s=rates.get("decode_tokens_per_s"),
        first_token_s=finished.timings.first_token_s,
        streams_tokens_per_s=_streams(engine, prompt, workload) if workload.streams > 1 else None,
        prompt_joules_per_token=energy["prefill_j"] / len(prompt) if energy else None,
        joules_per_token=energy.get("joules_per_token"),
    )


def _streams(engine: Engine, prompt: Sequence[int], workload: Workload) -> float | None:
    """Tokens per second of all streams, from the last one's first token to the end of the first one to end."""
    answers = _answers(engine, prompt, workload.decode_tokens, workload.streams)
    states = [answer.state for answer in answers]
    begun: tuple[float, int] | None = None
    rate = None
    while not all(state.done for state in states):
        engine.step()
        now, tokens = time.monotonic(), sum(state.completion_tokens for state in states)
        if any(state.done for state in states):
            if rate is None and begun is not None and now > begun[0]:
                rate = (tokens - begun[1]) / (now - begun[0])
        elif begun is None and all(state.completion_tokens for state in states):
            begun = now, tokens
    for answer in answers:
        answer.finished()
    return rate


class _Answer:
    """A request on the engine."""

    def __init__(self, request: ChatRequest, prompt: Sequence[int]) -> None:
        self._last: Event | None = None
        self.state = RequestState(PreparedRequest(request, prompt), self._keep, submitted=time.monotonic())

    def _keep(self, event: Event) -> None:
        self._last = event

    def finished(self) -> Finished:
        """Return how it ended, or raise why it failed."""
        if isinstance(self._last, Failure):
            raise self._last.error
        assert isinstance(self._last, Finished)  # noqa: S101  asked after the last event
        return self._last


def _answers(engine: Engine, prompt: Sequence[int], tokens: int, count: int) -> list[_Answer]:
    """Put requests for the same prompt into the engine."""
    answers = []
    for number in range(count):
        request = ChatRequest(id=f"speed-{number}", prompt="", max_tokens=tokens, cache_prompt=False)
        answers.append(_Answer(request, prompt))
        engine.add(answers[-1].state)
    return answers
