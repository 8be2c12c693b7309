"""edgekit behind the benchmark's pipe: the scheduler that its users get, or the bare runner (form `runner`)."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from speed.engine import Answer, Ask, Options

import edgekit as package
from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import GenerationConfig
from edgekit.generation.model import TextModel
from edgekit.generation.opening import open_model, schedule, share_memory
from edgekit.generation.request import ChatRequest, Delta, Event, Failure, Finish, Message, ResponseFormat, Sampling
from edgekit.runners.base import Chunk

__all__ = ["open_engine"]


def open_engine(model: Path, options: Options) -> SchedulerEngine | RunnerEngine:
    """Load the bundle, as the daemon does."""
    config = GenerationConfig(
        context_length=options.context,
        threads=options.threads,
        parallel=options.streams,
        max_queue=max(16, 2 * options.streams),
        prefix_folder=Path(options.folder) if options.folder else None,
    )
    bundle = open_bundle(model)
    loaded = open_model(bundle, config)
    if options.endless:
        loaded = dataclasses.replace(loaded, eos_token_ids=frozenset())
    return RunnerEngine(loaded) if options.form == "runner" else SchedulerEngine(loaded, bundle, config)


class SchedulerEngine:
    """Requests through `Scheduler.submit`, as the daemon's doors hand them over."""

    def __init__(self, model: TextModel, bundle: Bundle, config: GenerationConfig) -> None:
        self.version = package.__version__
        self._model = model
        self._scheduler = schedule(model, bundle, config, share_memory(model, bundle, config))

    def render(self, ask: Ask) -> list[int]:
        """The prompt's tokens."""
        return list(self._model.prompt(self._request(ask, 0)).tokens)

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """Submit all, and wait for all."""
        came: queue.SimpleQueue[tuple[int, Event, float]] = queue.SimpleQueue()
        start = time.perf_counter()
        submitted = []
        for number, ask in enumerate(asks):
            request = self._request(ask, number)
            submitted.append(time.perf_counter() - start)
            self._scheduler.submit(request, lambda event, number=number: came.put((number, event, time.perf_counter())))
        texts = ["" for _ in asks]
        answers: dict[int, Answer] = {}
        while len(answers) < len(asks):
            number, event, now = came.get()
            if isinstance(event, Delta):
                texts[number] += event.text
            elif isinstance(event, Failure):
                raise event.error
            elif isinstance(event, Finish):
                usage = event.usage
                answers[number] = Answer(
                    prompt=usage.prompt_tokens,
                    tokens=usage.completion_tokens,
                    first_s=submitted[number] + event.timings.first_token_s,
                    total_s=now - start,
                    text=texts[number],
                    cached=usage.cached_tokens,
                    guessed=usage.accepted_tokens,
                    ended=event.reason == "stop",
                )
        return [answers[number] for number in range(len(asks))]

    def keep(self, ask: Ask, shared: int) -> None:  # noqa: ARG002  it finds out itself what later prompts share
        """Answer once; the prompt is kept by the way."""
        self.run([dataclasses.replace(ask, max_tokens=1)])

    def close(self) -> None:
        """Stop the scheduler, which writes what is to be kept."""
        self._scheduler.stop(drain_s=10.0)

    def _request(self, ask: Ask, number: int) -> ChatRequest:
        return ChatRequest(
            id=f"benchmark-{number}",
            messages=tuple(Message(item["role"], item["content"]) for item in ask.messages),  # type: ignore[arg-type]
            sampling=Sampling(temperature=ask.temperature),
            max_tokens=ask.max_tokens,
            response_format=None if ask.schema is None else ResponseFormat("json_schema", ask.schema),
            speculation=ask.speculate,
            cache_prompt=ask.keep,
        )


class RunnerEngine:
    """The runner alone, greedily: what the layers above it cost is the difference."""

    def __init__(self, model: TextModel) -> None:
        self.version = package.__version__
        self._model = model

    def render(self, ask: Ask) -> list[int]:
        """The scheduler's process renders."""
        raise NotImplementedError

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """One after the other, in sequence slot 0."""
        return [self._run(ask) for ask in asks]

    def _run(self, ask: Ask) -> Answer:
        runner = self._model.runner
        step = runner.limits.max_chunk
        prompt = list(ask.tokens)
        runner.truncate(0, 0)
        start = time.perf_counter()
        for first in range(0, len(prompt), step):
            last = first + step >= len(prompt)
            logits = runner.run([Chunk(0, prompt[first : first + step], "last" if last else "none")])
        ids = [int(np.argmax(logits[0][-1]))]
        first_s = time.perf_counter() - start
        while len(ids) < ask.max_tokens:
            ids.append(int(np.argmax(runner.run([Chunk(0, ids[-1:])])[0][-1])))
        return Answer(len(prompt), len(ids), first_s, time.perf_counter() - start, ids=ids)

    def keep(self, ask: Ask, shared: int) -> None:
        """It has nothing to keep it in."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the model."""
        self._model.close()
