"""The benchmark's adapter for edgekit: the engine worker that users get, or only the runner (form `runner`)."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from speed.engine import Answer, Options, Request

import edgekit as package
from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import GenerationConfig
from edgekit.generation.model import TextModel
from edgekit.generation.startup import open_model, plan_memory, start_worker
from edgekit.generation.types import ChatRequest, Delta, Event, Failure, Finished, Message, ResponseFormat, Sampling
from edgekit.runners.base import Chunk

__all__ = ["open_engine"]


def open_engine(model: Path, options: Options) -> WorkerEngine | RunnerEngine:
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
    return RunnerEngine(loaded) if options.form == "runner" else WorkerEngine(loaded, bundle, config)


class WorkerEngine:
    """Submits requests to the `EngineWorker`, as the daemon does."""

    def __init__(self, model: TextModel, bundle: Bundle, config: GenerationConfig) -> None:
        self.version = package.__version__
        self._model = model
        self._worker = start_worker(model, bundle, config, plan_memory(model, bundle, config))

    def render(self, request: Request) -> list[int]:
        """Return the prompt's tokens."""
        return list(self._model.prompt(self._chat_request(request, 0)).tokens)

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Submit all requests, and wait for their answers."""
        events: queue.SimpleQueue[tuple[int, Event, float]] = queue.SimpleQueue()
        start = time.perf_counter()
        submitted = []
        for number, request in enumerate(requests):
            chat_request = self._chat_request(request, number)
            submitted.append(time.perf_counter() - start)
            self._worker.submit(
                chat_request, lambda event, number=number: events.put((number, event, time.perf_counter()))
            )
        texts = ["" for _ in requests]
        answers: dict[int, Answer] = {}
        while len(answers) < len(requests):
            number, event, now = events.get()
            if isinstance(event, Delta):
                texts[number] += event.text
            elif isinstance(event, Failure):
                raise event.error
            elif isinstance(event, Finished):
                usage = event.usage
                answers[number] = Answer(
                    prompt=usage.prompt_tokens,
                    tokens=usage.completion_tokens,
                    first_s=submitted[number] + event.timings.first_token_s,
                    total_s=now - start,
                    text=texts[number],
                    cached=usage.cached_tokens,
                    accepted=usage.accepted_tokens,
                    ended=event.reason == "stop",
                )
        return [answers[number] for number in range(len(requests))]

    def keep(self, request: Request, shared: int) -> None:  # noqa: ARG002  edgekit detects shared prefixes itself
        """Answer once, which caches the prompt."""
        self.run([dataclasses.replace(request, max_tokens=1)])

    def close(self) -> None:
        """Stop the worker, which saves the prefix cache."""
        self._worker.stop(drain_s=10.0)

    def _chat_request(self, request: Request, number: int) -> ChatRequest:
        return ChatRequest(
            id=f"benchmark-{number}",
            messages=tuple(Message(item["role"], item["content"]) for item in request.messages),  # type: ignore[arg-type]
            sampling=Sampling(temperature=request.temperature),
            max_tokens=request.max_tokens,
            response_format=None if request.schema is None else ResponseFormat("json_schema", request.schema),
            speculation=request.speculate,
            cache_prompt=request.keep,
        )


class RunnerEngine:
    """The runner alone, greedy: the difference is the cost of the layers above it."""

    def __init__(self, model: TextModel) -> None:
        self.version = package.__version__
        self._model = model

    def render(self, request: Request) -> list[int]:
        """Not supported: `WorkerEngine` renders."""
        raise NotImplementedError

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer one after the other, in sequence slot 0."""
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Answer:
        runner = self._model.runner
        step = runner.limits.max_chunk
        prompt = list(request.tokens)
        runner.truncate(0, 0)
        start = time.perf_counter()
        for first in range(0, len(prompt), step):
            last = first + step >= len(prompt)
            logits = runner.run([Chunk(0, prompt[first : first + step], "last" if last else "none")])
        ids = [int(np.argmax(logits[0][-1]))]
        first_s = time.perf_counter() - start
        while len(ids) < request.max_tokens:
            ids.append(int(np.argmax(runner.run([Chunk(0, ids[-1:])])[0][-1])))
        return Answer(len(prompt), len(ids), first_s, time.perf_counter() - start, ids=ids)

    def keep(self, request: Request, shared: int) -> None:
        """Not supported: the runner has no prefix cache."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the model."""
        self._model.close()
