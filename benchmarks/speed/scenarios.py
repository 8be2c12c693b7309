"""Defines the scenarios: contenders, requests of each round, and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
from speed.copying import CHATS
from speed.engine import Answer, Options, Request
from speed.extraction import TASKS
from speed.process import Contender

__all__ = ["LLAMA_FORMS", "ORDINARY", "Figure", "Prompts", "Scenario", "Sizes"]

LLAMA_FORMS = ("llama.cpp", "llama.cpp Q4_0")
"""llama.cpp with the model's own GGUF, and with that as Q4_0, for which it has faster kernels."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the scenarios; `quick` is for a smoke test."""

    prompt: int = 512
    decode: int = 128
    stream_prompts: tuple[int, int] = (64, 128)
    stream_decode: int = 64
    streams: tuple[int, ...] = (4, 8)
    tasks: int = len(TASKS)
    task_tokens: int = 256
    chats: int = len(CHATS)
    chat_tokens: int = 256
    prefix: int = 1500

    @classmethod
    def quick(cls) -> Sizes:
        """Sizes that take a few seconds each."""
        return cls(64, 8, (16, 32), 6, (2, 4), 3, 96, 1, 24, 200)


@dataclass(frozen=True)
class Figure:
    """A column.

    Attributes:
        better: `more` or `less`; None: not compared.
    """

    key: str
    title: str
    better: str | None = "more"
    digits: int = 1


@dataclass(frozen=True)
class Prompts:
    """Generates chats of a given length.

    Attributes:
        encode: Text to tokens.
        decode: Tokens to text.
        overhead: Tokens that the chat template adds.
        text: Source text of the chats.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    overhead: int
    text: str

    def chat(self, tokens: int, number: int, role: str = "user") -> list[dict[str, str]]:
        """Return a chat of about `tokens`; each number gives another chat, different from the first word on."""
        head = f"Note {number}. "
        ids = self.encode(self.text)
        start = number * 131 % len(ids)
        wanted = max(1, tokens - self.overhead - len(self.encode(head)))
        body = [ids[(start + offset) % len(ids)] for offset in range(wanted)]
        return [{"role": role, "content": head + self.decode(body)}]


@dataclass(frozen=True)
class Scenario:
    """One table.

    Attributes:
        requests: Round number to named groups of requests; the requests of a group run concurrently.
        figures: Columns.
        measure: Groups of answers to figures; figures of skipped groups may be omitted.
        skips: Groups that a contender skips, by label.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    requests: Callable[[int], dict[str, list[Request]]]
    figures: tuple[Figure, ...]
    measure: Callable[[dict[str, list[Answer]]], dict[str, float]]
    skips: dict[str, tuple[str, ...]]


def single(prompts: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """One stream, without speculative decoding."""
    options = Options(threads=threads, endless=True)

    def requests(number: int) -> dict[str, list[Request]]:
        request = Request(prompts.chat(sizes.prompt, 2 * number), sizes.decode + 1, speculate=False)
        other = Request(prompts.chat(sizes.prompt, 2 * number + 1), sizes.decode + 1, temperature=0.7, speculate=False)
        return {"greedy": [request], "sampled": [other]}

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        greedy = groups["greedy"][0]
        found = {"prompt": greedy.prompt / greedy.first_s, "greedy": _decode_rate([greedy])}
        if "sampled" in groups:
            found["sampled"] = _decode_rate(groups["sampled"])
        return found

    return Scenario(
        "single",
        f"One stream: {sizes.prompt} prompt tokens, {sizes.decode} decoded, no speculative decoding; tokens/s",
        (
            Contender("edgekit", "edgekit", options),
            Contender("edgekit, runner only", "edgekit", replace(options, form="runner")),
            *(Contender(name, name, options) for name in (*LLAMA_FORMS, "onnxruntime-genai")),
        ),
        requests,
        (Figure("prompt", "prompt"), Figure("greedy", "decode, greedy"), Figure("sampled", "decode, temperature 0.7")),
        measure,
        {"edgekit, runner only": ("sampled",)},
    )


def streams(prompts: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Concurrent streams, without speculative decoding."""
    max_streams = max(sizes.streams)
    options = Options(threads=threads, streams=max_streams, endless=True, context=1024)
    low, high = sizes.stream_prompts

    def requests(number: int) -> dict[str, list[Request]]:
        groups = {}
        for column, count in enumerate(sizes.streams):
            for row, (name, temperature) in enumerate((("sampled", 0.7), ("greedy", 0.0))):
                first = ((number * len(sizes.streams) + column) * 2 + row) * max_streams
                lengths = [low + (high - low) * index // (count - 1) for index in range(count)]
                groups[f"{count}-{name}"] = [
                    Request(
                        prompts.chat(length, first + index),
                        sizes.stream_decode,
                        temperature=temperature,
                        speculate=False,
                    )
                    for index, length in enumerate(lengths)
                ]
        return groups

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        return {
            name: sum(answer.tokens for answer in group) / max(answer.total_s for answer in group)
            for name, group in groups.items()
        }

    figures = [
        Figure(f"{count}-{name}", f"{count} streams, {'greedy' if name == 'greedy' else 'temperature 0.7'}")
        for count in sizes.streams
        for name in ("sampled", "greedy")
    ]
    return Scenario(
        "streams",
        f"Concurrent streams: prompts of {low} to {high} tokens, {sizes.stream_decode} generated each; "
        "generated tokens/s from the first request to the end of the last answer",
        tuple(Contender(name, name, options) for name in ("edgekit", *LLAMA_FORMS, "onnxruntime-genai")),
        requests,
        tuple(figures),
        measure,
        {},
    )


def extraction(_: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Extraction of records with a JSON schema; speculative decoding is allowed."""
    options = Options(threads=threads)
    tasks = TASKS[: sizes.tasks]

    def requests(_: int) -> dict[str, list[Request]]:
        return {
            str(index): [Request(task.messages, sizes.task_tokens, schema=dict(task.schema))]
            for index, task in enumerate(tasks)
        }

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        answers = [groups[str(index)][0] for index in range(len(tasks))]
        valid = [_valid(answer.text, task.schema) for answer, task in zip(answers, tasks, strict=True)]
        return {
            "seconds": sum(answer.total_s for answer in answers) / len(answers),
            "valid": 100 * sum(valid) / len(valid),
            "tokens": sum(answer.tokens for answer in answers) / len(answers),
        }

    return Scenario(
        "extraction",
        f"JSON by schema: {len(tasks)} tasks, greedy, at most {sizes.task_tokens} tokens each",
        (
            Contender("edgekit", "edgekit", options),
            *_lookups(options, dict.fromkeys(LLAMA_FORMS, (0, 2))),
            Contender("onnxruntime-genai", "onnxruntime-genai", options),
        ),
        requests,
        (
            Figure("seconds", "seconds per task", "less", 3),
            Figure("valid", "valid, %", None, 0),
            Figure("tokens", "tokens per task", None),
        ),
        measure,
        {},
    )


def copying(_: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Answers that repeat the prompt; speculative decoding is allowed."""
    options = Options(threads=threads)

    def requests(_: int) -> dict[str, list[Request]]:
        return {str(index): [Request(chat, sizes.chat_tokens)] for index, chat in enumerate(CHATS[: sizes.chats])}

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        answers = [answer for group in groups.values() for answer in group]
        accepted = sum(answer.accepted for answer in answers) / sum(answer.tokens for answer in answers)
        return {"rate": _decode_rate(answers), "accepted": 100 * accepted}

    peers = _lookups(options, dict.fromkeys(LLAMA_FORMS, (0, 2, 10)) | {"onnxruntime-genai": (0, 4)})
    return Scenario(
        "copying",
        f"Answers that repeat their prompt: {sizes.chats} chats, greedy, at most {sizes.chat_tokens} tokens each",
        (Contender("edgekit", "edgekit", options), *peers),
        requests,
        (Figure("rate", "decode, tokens/s"), Figure("accepted", "accepted drafts, % of tokens", None, 0)),
        measure,
        {},
    )


ORDINARY: dict[str, Callable[[Prompts, Sizes, int], Scenario]] = {
    "single": single,
    "streams": streams,
    "extraction": extraction,
    "copying": copying,
}
"""Scenarios in which every engine is loaded once; `rounds.restart` is the other one."""


def _lookups(options: Options, lookups: Mapping[str, Sequence[int]]) -> list[Contender]:
    """Return contenders with the peers' own prompt lookup; 0 disables it."""
    return [
        Contender(f"{name}{f', lookup of {lookup}' if lookup else ''}", name, replace(options, lookup=lookup))
        for name, counts in lookups.items()
        for lookup in counts
    ]


def _decode_rate(answers: Sequence[Answer]) -> float:
    # The first token is part of prefill.
    tokens = sum(answer.tokens - 1 for answer in answers)
    seconds = sum(answer.total_s - answer.first_s for answer in answers)
    return tokens / seconds if seconds else 0.0


def _valid(text: str, schema: Any) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
