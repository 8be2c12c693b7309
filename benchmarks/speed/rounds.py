"""Runs a scenario: loads all engines, interleaves the rounds, and records every figure."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speed.engine import Answer, Options, Request
from speed.process import Contender, EngineProcess, FailedError, Installation
from speed.scenarios import LLAMA_FORMS, Figure, Prompts, Scenario, Sizes

__all__ = ["RESTART", "Outcome", "play", "restart"]

RESTART = "restart"


@dataclass
class Row:
    """Figures of one contender."""

    version: str
    engine: str
    figures: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Outcome:
    """Results of a scenario: rows by label, and why other contenders were left out."""

    title: str
    rounds: int
    figures: tuple[Figure, ...]
    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, label: str, values: Mapping[str, float]) -> None:
        """Add the figures of one round."""
        for key, value in values.items():
            self.rows[label].figures.setdefault(key, []).append(value)

    def drop(self, label: str, why: str) -> None:
        """Remove a contender and its figures."""
        print(f"{label} is left out: {why}", file=sys.stderr)
        self.rows.pop(label, None)
        self.left_out[label] = why


def play(scenario: Scenario, installations: Mapping[str, Installation], rounds: int) -> Outcome:
    """Run a scenario whose engines are loaded once, after a warm-up round.

    Args:
        scenario: The scenario.
        installations: By key; contenders without one are skipped.
        rounds: Number of measured rounds.
    """
    outcome = Outcome(scenario.title, rounds, scenario.figures)
    processes = _start(scenario.contenders, installations, outcome)
    try:
        for number in range(rounds + 1):
            print(f"{scenario.name}: {f'round {number} of {rounds}' if number else 'warming up'} …", file=sys.stderr)
            # edgekit renders the chats of the round, so that all engines get the same tokens.
            groups = {
                name: processes["edgekit"].render(requests) for name, requests in scenario.requests(number).items()
            }
            for label in list(processes):
                wanted = {
                    name: requests for name, requests in groups.items() if name not in scenario.skips.get(label, ())
                }
                try:
                    answers = {name: processes[label].run(requests) for name, requests in wanted.items()}
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
    contenders: tuple[Contender, ...], installations: Mapping[str, Installation], outcome: Outcome
) -> dict[str, EngineProcess]:
    processes: dict[str, EngineProcess] = {}
    for contender in contenders:
        installation = installations.get(contender.installation)
        if installation is None:
            continue
        try:
            process = EngineProcess(contender, installation)
        except FailedError as error:
            if contender.label == "edgekit":
                raise
            outcome.drop(contender.label, str(error))
            continue
        processes[contender.label] = process
        outcome.rows[contender.label] = Row(process.version, installation.engine)
    return processes


def restart(
    prompts: Prompts, sizes: Sizes, threads: int, installations: Mapping[str, Installation], *, rounds: int, work: Path
) -> Outcome:
    """Measure the time to first token after a restart, with a prefix of the prompt saved before.

    Each engine computes the prefix once in its own process and saves it in its own way, llama.cpp as a sequence state
    file. Then every round runs in new processes; loading the engine is not measured. The files are in the page cache,
    for all engines.
    """
    outcome = Outcome(
        f"Time to first token after a restart, {sizes.prefix} of the prompt's tokens cached; "
        "seconds in a new process, without loading",
        rounds,
        (
            Figure("again", "cached prefix, s", "less", 3),
            Figure("cold", "not cached, s", "less", 3),
            Figure("cached", "cached tokens", None, 0),
        ),
    )
    contenders = {}
    for name in ("edgekit", *LLAMA_FORMS, "onnxruntime-genai"):
        folder = work / f"prefix-{name.replace(' ', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        contenders[name] = Contender(name, name, Options(threads=threads, folder=str(folder.resolve())))

    def chat(number: int, question: str) -> Request:
        known = prompts.chat(sizes.prefix, number, role="system")
        return Request([*known, {"role": "user", "content": question}], max_tokens=2, keep=True)

    processes = _start(tuple(contenders.values()), installations, outcome)
    try:
        known, other = processes["edgekit"].render([chat(0, "What is this about?"), chat(0, "Name one number in it.")])
        shared = next(
            position for position, (a, b) in enumerate(zip(known.tokens, other.tokens, strict=False)) if a != b
        )
        for process in processes.values():
            process.keep(known, shared)
    finally:
        for process in processes.values():
            process.stop()
    for number in range(1, rounds + 1):
        print(f"restart: round {number} of {rounds} …", file=sys.stderr)
        cached, uncached = chat(0, f"Tell me the word at place {number}."), chat(number, "What is this about?")
        for label in list(outcome.rows):
            process = EngineProcess(contenders[label], installations[label])
            try:
                if label == "edgekit":
                    cached, uncached = process.render([cached, replace(uncached, keep=False)])
                answers: list[Answer] = [*process.run([cached]), *process.run([uncached])]
            finally:
                process.stop()
            outcome.add(label, _restart_figures(answers))
    return outcome


def _restart_figures(answers: list[Answer]) -> dict[str, Any]:
    again, cold = answers
    return {"again": again.first_s, "cold": cold.first_s, "cached": again.cached}
