"""What is measured: who takes part, what is asked in each round, and which figures come of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
from speed.copying import CHATS
from speed.engine import Answer, Ask, Options
from speed.extraction import TASKS
from speed.process import Contender

__all__ = ["ORDINARY", "Figure", "Prompts", "Scenario", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How much is asked for; `quick` only shows that it works."""

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
        """A few seconds of each."""
        return cls(64, 8, (16, 32), 6, (2, 4), 3, 96, 1, 24, 200)


@dataclass(frozen=True)
class Figure:
    """A column.

    Attributes:
        better: `more` or `less`; None is not compared.
    """

    key: str
    title: str
    better: str | None = "more"
    digits: int = 1


@dataclass(frozen=True)
class Prompts:
    """Makes chats of a wanted length.

    Attributes:
        encode: Text to tokens.
        decode: Tokens to text.
        overhead: Tokens that the chat template adds.
        text: What they are cut out of.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    overhead: int
    text: str

    def chat(self, tokens: int, number: int, role: str = "user") -> list[dict[str, str]]:
        """A chat of about so many tokens; each number gives another one, different from the first word on."""
        head = f"Note {number}. "
        ids = self.encode(self.text)
        start = number * 131 % len(ids)
        wanted = max(1, tokens - self.overhead - len(self.encode(head)))
        body = [ids[(start + place) % len(ids)] for place in range(wanted)]
        return [{"role": role, "content": head + self.decode(body)}]


@dataclass(frozen=True)
class Scenario:
    """One table.

    Attributes:
        asks: Round number to groups of asks by name; each group is answered at once.
        figures: Columns.
        measure: Groups of answers to figures; it may leave out what a contender was not asked.
        skips: Groups that a contender's label does not take part in.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    asks: Callable[[int], dict[str, list[Ask]]]
    figures: tuple[Figure, ...]
    measure: Callable[[dict[str, list[Answer]]], dict[str, float]]
    skips: dict[str, tuple[str, ...]]


def single(prompts: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """One stream; nothing is guessed ahead by anybody."""
    options = Options(threads=threads, endless=True)

    def asks(number: int) -> dict[str, list[Ask]]:
        ask = Ask(prompts.chat(sizes.prompt, 2 * number), sizes.decode + 1, speculate=False)
        other = Ask(prompts.chat(sizes.prompt, 2 * number + 1), sizes.decode + 1, temperature=0.7, speculate=False)
        return {"greedy": [ask], "sampled": [other]}

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        greedy = groups["greedy"][0]
        found = {"prompt": greedy.prompt / greedy.first_s, "greedy": _decode_rate([greedy])}
        if "sampled" in groups:
            found["sampled"] = _decode_rate(groups["sampled"])
        return found

    return Scenario(
        "single",
        f"One stream: {sizes.prompt} prompt tokens, {sizes.decode} decoded, no guessing ahead; tokens/s",
        (
            Contender("edgekit", "edgekit", options),
            Contender("edgekit, runner only", "edgekit", replace(options, form="runner")),
            Contender("llama.cpp", "llama.cpp", options),
            Contender("onnxruntime-genai", "onnxruntime-genai", options),
        ),
        asks,
        (Figure("prompt", "prompt"), Figure("greedy", "decode, greedy"), Figure("sampled", "decode, temperature 0.7")),
        measure,
        {"edgekit, runner only": ("sampled",)},
    )


def streams(prompts: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Several streams at once; nothing is guessed ahead by anybody."""
    most = max(sizes.streams)
    options = Options(threads=threads, streams=most, endless=True, context=1024)
    low, high = sizes.stream_prompts

    def asks(number: int) -> dict[str, list[Ask]]:
        groups = {}
        for column, count in enumerate(sizes.streams):
            for row, (name, temperature) in enumerate((("sampled", 0.7), ("greedy", 0.0))):
                first = ((number * len(sizes.streams) + column) * 2 + row) * most
                lengths = [low + (high - low) * place // (count - 1) for place in range(count)]
                groups[f"{count}-{name}"] = [
                    Ask(
                        prompts.chat(length, first + place),
                        sizes.stream_decode,
                        temperature=temperature,
                        speculate=False,
                    )
                    for place, length in enumerate(lengths)
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
        f"Streams at once: prompts of {low} to {high} tokens, {sizes.stream_decode} generated each; "
        "generated tokens/s from the first request to the last answer's end",
        tuple(Contender(name, name, options) for name in ("edgekit", "llama.cpp", "onnxruntime-genai")),
        asks,
        tuple(figures),
        measure,
        {},
    )


def extraction(_: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Records out of texts, held to a schema; everybody may guess ahead."""
    options = Options(threads=threads)
    tasks = TASKS[: sizes.tasks]

    def asks(_: int) -> dict[str, list[Ask]]:
        return {
            str(place): [Ask(task.messages, sizes.task_tokens, schema=dict(task.schema))]
            for place, task in enumerate(tasks)
        }

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        answers = [groups[str(place)][0] for place in range(len(tasks))]
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
            Contender("llama.cpp", "llama.cpp", options),
            Contender("llama.cpp, lookup of 2", "llama.cpp", replace(options, lookup=2)),
            Contender("onnxruntime-genai", "onnxruntime-genai", options),
        ),
        asks,
        (
            Figure("seconds", "seconds per task", "less", 3),
            Figure("valid", "valid, %", None, 0),
            Figure("tokens", "tokens per task", None),
        ),
        measure,
        {},
    )


def copying(_: Prompts, sizes: Sizes, threads: int) -> Scenario:
    """Answers that repeat the prompt; everybody may guess ahead."""
    options = Options(threads=threads)

    def asks(_: int) -> dict[str, list[Ask]]:
        return {str(place): [Ask(chat, sizes.chat_tokens)] for place, chat in enumerate(CHATS[: sizes.chats])}

    def measure(groups: dict[str, list[Answer]]) -> dict[str, float]:
        answers = [answer for group in groups.values() for answer in group]
        guessed = sum(answer.guessed for answer in answers) / sum(answer.tokens for answer in answers)
        return {"rate": _decode_rate(answers), "guessed": 100 * guessed}

    peers = [
        Contender(f"{name}{f', lookup of {lookup}' if lookup else ''}", name, replace(options, lookup=lookup))
        for name, lookups in (("llama.cpp", (0, 2, 10)), ("onnxruntime-genai", (0, 4)))
        for lookup in lookups
    ]
    return Scenario(
        "copying",
        f"Answers that repeat their prompt: {sizes.chats} chats, greedy, at most {sizes.chat_tokens} tokens each",
        (Contender("edgekit", "edgekit", options), *peers),
        asks,
        (Figure("rate", "decode, tokens/s"), Figure("guessed", "guessed rightly, %", None, 0)),
        measure,
        {},
    )


ORDINARY: dict[str, Callable[[Prompts, Sizes, int], Scenario]] = {
    "single": single,
    "streams": streams,
    "extraction": extraction,
    "copying": copying,
}
"""Scenarios in which every engine is loaded once; `restart.py` has the other one."""


def _decode_rate(answers: Sequence[Answer]) -> float:
    # The first token comes out of the prompt.
    tokens = sum(answer.tokens - 1 for answer in answers)
    seconds = sum(answer.total_s - answer.first_s for answer in answers)
    return tokens / seconds if seconds else 0.0


def _valid(text: str, schema: Any) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
