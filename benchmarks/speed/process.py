"""Starts an engine in its own process and sends it commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speed.engine import Answer, Options, Request

__all__ = ["Contender", "EngineProcess", "FailedError", "Installation"]

BENCHMARKS = Path(__file__).parent.parent


class FailedError(Exception):
    """The engine reported that it cannot do this."""


@dataclass(frozen=True)
class Contender:
    """An engine with its options.

    Attributes:
        label: Its row in the table; of all rows of peers, the best one counts.
        installation: Key of the installation that it runs.
    """

    label: str
    installation: str
    options: Options


@dataclass(frozen=True)
class Installation:
    """An engine, its interpreter, and the model in a format of its own.

    Attributes:
        engine: `edgekit`, `llama.cpp` or `onnxruntime-genai`.
    """

    engine: str
    python: str
    model: Path


class EngineProcess:
    """A loaded engine."""

    def __init__(self, contender: Contender, installation: Installation) -> None:
        self.contender = contender
        command = [
            *(installation.python, "-m", "speed.engines"),
            installation.engine,
            str(installation.model),
            json.dumps(asdict(contender.options)),
        ]
        path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self._process.stdin
        assert self._process.stdout
        self._commands, self._answers = self._process.stdin, self._process.stdout
        first = self._answers.readline()
        if not first:
            raise FailedError(f"it failed to load (exit code {self._process.wait()})")
        self.version: str = json.loads(first)["version"]

    def render(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests with their tokens; only edgekit's process supports this."""
        rendered = self._command("render", requests)
        return [replace(request, tokens=tuple(tokens)) for request, tokens in zip(requests, rendered, strict=True)]

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests concurrently.

        Raises:
            FailedError: The engine failed, or used a cached prompt where it must not.
        """
        answers = [Answer(**answer) for answer in self._command("run", requests)]
        for request, answer in zip(requests, answers, strict=True):
            if answer.prompt != len(request.tokens):
                raise FailedError(f"its prompt has {answer.prompt} tokens instead of {len(request.tokens)}")
            if answer.cached and not request.keep:
                raise FailedError("it used a cached prompt, which was not allowed")
        return answers

    def keep(self, request: Request, shared: int) -> None:
        """Save the first `shared` tokens of the prompt for a restart."""
        self._command("keep", [request], shared=shared)

    def stop(self) -> None:
        """Let it save its state, and wait for its end."""
        self._commands.close()
        code = self._process.wait(timeout=120)
        if code:
            print(f"{self.contender.label} ended with {code}", file=sys.stderr)

    def _command(self, verb: str, requests: Sequence[Request], **fields: Any) -> Any:
        self._commands.write(
            json.dumps({"verb": verb, "requests": [asdict(request) for request in requests], **fields}) + "\n"
        )
        self._commands.flush()
        line = self._answers.readline()
        if not line:
            raise FailedError("its process ended")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise FailedError(answer["error"])
        return answer
