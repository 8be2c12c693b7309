"""The asking side of an engine's process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speed.engine import Answer, Ask, Options

__all__ = ["Contender", "EngineProcess", "FailedError", "Place"]

ENGINES = Path(__file__).parent.parent / "engines.py"


class FailedError(Exception):
    """The engine said that it cannot do this."""


@dataclass(frozen=True)
class Contender:
    """An engine in one of its forms.

    Attributes:
        label: Its row in the table; a peer's rows count by the better of them.
        engine: `edgekit`, `llama.cpp` or `onnxruntime-genai`.
    """

    label: str
    engine: str
    options: Options


@dataclass(frozen=True)
class Place:
    """Where an engine is: its interpreter, and the model in its own format."""

    python: str
    model: Path


class EngineProcess:
    """One engine, loaded."""

    def __init__(self, contender: Contender, place: Place) -> None:
        self.contender = contender
        command = [
            place.python,
            str(ENGINES),
            contender.engine,
            str(place.model),
            json.dumps(asdict(contender.options)),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout
        first = self._answers.readline()
        if not first:
            raise FailedError(f"it did not load (exit code {self._process.wait()})")
        self.version: str = json.loads(first)["version"]

    def render(self, asks: Sequence[Ask]) -> list[Ask]:
        """The same with their tokens filled in; edgekit's process can."""
        rendered = self._order("render", asks)
        return [replace(ask, tokens=tuple(tokens)) for ask, tokens in zip(asks, rendered, strict=True)]

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer all at once.

        Raises:
            FailedError: It cannot, or it remembered a prompt that it was to compute.
        """
        answers = [Answer(**answer) for answer in self._order("run", asks)]
        for ask, answer in zip(asks, answers, strict=True):
            if answer.prompt != len(ask.tokens):
                raise FailedError(f"its prompt has {answer.prompt} tokens, the others' {len(ask.tokens)}")
            if answer.cached and not ask.keep:
                raise FailedError("it used a remembered prompt where none was to be used")
        return answers

    def keep(self, ask: Ask, shared: int) -> None:
        """Keep the first `shared` tokens of the prompt over a restart."""
        self._order("keep", [ask], shared=shared)

    def stop(self) -> None:
        """Let it write what is to be kept, and wait for its end."""
        self._orders.close()
        code = self._process.wait(timeout=120)
        if code:
            print(f"{self.contender.label} ended with {code}", file=sys.stderr)

    def _order(self, verb: str, asks: Sequence[Ask], **fields: Any) -> Any:
        self._orders.write(json.dumps({"do": verb, "asks": [asdict(ask) for ask in asks], **fields}) + "\n")
        self._orders.flush()
        line = self._answers.readline()
        if not line:
            raise FailedError("its process ended")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise FailedError(answer["error"])
        return answer
