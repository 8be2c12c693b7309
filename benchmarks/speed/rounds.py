"""Plays a scenario: all engines loaded, rounds interleaved, every figure kept."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speed.engine import Answer, Ask, Options
from speed.process import Contender, EngineProcess, FailedError, Place
from speed.scenarios import Figure, Prompts, Scenario, Sizes

__all__ = ["RESTART", "Outcome", "play", "restart"]

RESTART = "restart"


@dataclass
class Row:
    """What one contender reached."""

    version: str
    engine: str
    figures: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Outcome:
    """A table to be: rows by label, and why others have none."""

    title: str
    rounds: int
    figures: tuple[Figure, ...]
    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, label: str, values: Mapping[str, float]) -> None:
        """Keep the figures of one round."""
        for key, value in values.items():
            self.rows[label].figures.setdefault(key, []).append(value)

    def drop(self, label: str, why: str) -> None:
        """Take a contender out, whatever it had reached."""
        print(f"{label} is left out: {why}", file=sys.stderr)
        self.rows.pop(label, None)
        self.left_out[label] = why


def play(scenario: Scenario, places: Mapping[str, Place], rounds: int) -> Outcome:
    """Measure an ordinary scenario; a first round warms up and does not count.

    Args:
        scenario: Who does what.
        places: Where each engine is; contenders without one are passed over.
        rounds: How many count.
    """
    outcome = Outcome(scenario.title, rounds, scenario.figures)
    processes = _start(scenario.contenders, places, outcome)
    try:
        for number in range(rounds + 1):
            print(f"{scenario.name}: {f'round {number} of {rounds}' if number else 'warming up'} …", file=sys.stderr)
            # edgekit renders the chats of the round; all engines get the same tokens.
            groups = {name: processes["edgekit"].render(asks) for name, asks in scenario.asks(number).items()}
            for label in list(processes):
                wanted = {name: asks for name, asks in groups.items() if name not in scenario.skips.get(label, ())}
                try:
                    answers = {name: processes[label].run(asks) for name, asks in wanted.items()}
                except FailedError as error:
                    if label == "edgekit":
                        raise
                    outcome.drop(label, str(error))
                    processes.pop(label).stop()
                    continue
                if number:
                    outcome.add(label, scenario.measure(answers))
    finally:
        for process in processes.values():
            process.stop()
    return outcome


def _start(
    contenders: tuple[Contender, ...], places: Mapping[str, Place], outcome: Outcome
) -> dict[str, EngineProcess]:
    processes: dict[str, EngineProcess] = {}
    for contender in contenders:
        if contender.engine not in places:
            continue
        try:
            process = EngineProcess(contender, places[contender.engine])
        except FailedError as error:
            if contender.label == "edgekit":
                raise
            outcome.drop(contender.label, str(error))
            continue
        processes[contender.label] = process
        outcome.rows[contender.label] = Row(process.version, contender.engine)
    return processes


def restart(
    prompts: Prompts, sizes: Sizes, threads: int, places: Mapping[str, Place], *, rounds: int, work: Path
) -> Outcome:
    """Measure the first token after a restart, the prompt's beginning being known from before.

    Each engine computes the prefix once in a process of its own and keeps it in its own way, llama.cpp in a file of
    its sequence's state. Then every round asks in fresh processes; loading the engine does not count. The files are in
    the page cache, for everybody.
    """
    outcome = Outcome(
        f"First token after a restart, {sizes.prefix} of the prompt's tokens known from before; "
        "seconds in a fresh process, loading not counted",
        rounds,
        (
            Figure("again", "known prefix, s", "less", 3),
            Figure("cold", "computed anew, s", "less", 3),
            Figure("cached", "tokens not computed", None, 0),
        ),
    )
    contenders = {}
    for name in ("edgekit", "llama.cpp", "onnxruntime-genai"):
        folder = work / f"prefix-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        contenders[name] = Contender(name, name, Options(threads=threads, folder=str(folder.resolve())))

    def chat(number: int, question: str) -> Ask:
        known = prompts.chat(sizes.prefix, number, role="system")
        return Ask([*known, {"role": "user", "content": question}], max_tokens=2, keep=True)

    processes = _start(tuple(contenders.values()), places, outcome)
    try:
        known, other = processes["edgekit"].render([chat(0, "What is this about?"), chat(0, "Name one number in it.")])
        shared = next(place for place, (a, b) in enumerate(zip(known.tokens, other.tokens, strict=False)) if a != b)
        for process in processes.values():
            process.keep(known, shared)
    finally:
        for process in processes.values():
            process.stop()
    for number in range(1, rounds + 1):
        print(f"restart: round {number} of {rounds} …", file=sys.stderr)
        known_again, anew = chat(0, f"Tell me the word at place {number}."), chat(number, "What is this about?")
        for label in list(outcome.rows):
            process = EngineProcess(contenders[label], places[label])
            try:
                if label == "edgekit":
                    known_again, anew = process.render([known_again, replace(anew, keep=False)])
                answers: list[Answer] = [*process.run([known_again]), *process.run([anew])]
            finally:
                process.stop()
            outcome.add(label, _restart_figures(answers))
    return outcome


def _restart_figures(answers: list[Answer]) -> dict[str, Any]:
    again, cold = answers
    return {"again": again.first_s, "cold": cold.first_s, "cached": again.cached}
